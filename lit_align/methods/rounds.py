"""Rounds of a run as people can read them, and train on them again: `<run>/rounds/`."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path

from lightning.pytorch import Trainer

from lit_align.feedback import Answer

FOLDER = "rounds"


def round_folder(trainer: Trainer, number: int) -> Path:
    """Where the model of a round lies, and beside it what was sampled; round 0 is what came before the first."""
    return Path(trainer.default_root_dir) / FOLDER / f"round_{number}"


def write_round(
    trainer: Trainer,
    number: int,
    first: Sequence[Answer],
    second: Sequence[Answer],
    probabilities: Sequence[float],
    gold: Sequence[float] | None,
) -> None:
    """Writes this rank's pairs of a round to `round_<number>.rank<rank>.jsonl`, whole or not at all.

    `PreferenceData` and `RankingData` read the file (with `on_bad_row: skip` where answers may be empty): a row's `scores` are
    the probabilities that each response is the better one.

    Args:
        trainer: Says where the run's folder is.
        number: Of the round.
        first: One answer to each prompt, P of them.
        second: The other answers to the same prompts.
        probabilities: That the first answer is the better one; a half is a tie.
        gold: Gold scores, of the first answers and then of the second ones, or None.
    """
    lines = []
    for i, (a, b, p) in enumerate(zip(first, second, probabilities, strict=True)):
        row = {
            "prompt": a.prompt,
            "responses": [a.response, b.response],
            "scores": [p, 1 - p],
            "winner": None if p == 0.5 else int(p < 0.5),
            "finished": [a.finished, b.finished],
        }
        if gold is not None:
            row["gold"] = [gold[i], gold[i + len(first)]]
        lines.append(json.dumps(row, ensure_ascii=False) + "\n")
    folder = round_folder(trainer, number)
    path = folder.with_name(f"{folder.name}.rank{trainer.global_rank}.jsonl")
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    partial.write_text("".join(lines), encoding="utf-8")
    os.replace(partial, path)
