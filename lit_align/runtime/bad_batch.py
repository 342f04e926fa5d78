"""What an optimiser step was made of, kept until it turned out well: a loss that is not a number is named by its rows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NoReturn

import torch
from lightning.pytorch import LightningModule
from torch import Tensor

from lit_align.errors import UserError
from lit_align.groups import GroupBatch
from lit_align.runtime.resume import gather_per_rank

FILE = "bad_batch.json"
NAMED = 5
"""Rows that the error itself names; the file has all."""


class StepRecord:
    """The batches of the optimiser step under way."""

    def __init__(self) -> None:
        self._seen: list[tuple[Any, Tensor]] = []

    def note(self, batch: Any, losses: Tensor) -> None:
        """Keeps a batch and what each of its losses was, `(E,)`, until `forget`; nothing waits for the device."""
        self._seen.append((batch, losses.detach()))

    def forget(self) -> None:
        """The step is about to be taken."""
        self._seen = []

    def refuse(self, module: LightningModule, what: str) -> NoReturn:
        """Writes the batches to `bad_batch.json` and ends the run, before the step. Every rank has to call.

        Args:
            module: The module that is trained.
            what: What is wrong, as the beginning of a sentence.

        Raises:
            UserError: Always.
        """
        mine = [
            {"rank": module.global_rank, "batch": number, **described(batch, losses, module)}
            for number, (batch, losses) in enumerate(self._seen)
        ]
        batches = [batch for of_rank in gather_per_rank(mine) for batch in of_rank]
        file = Path(module.trainer.default_root_dir) / FILE
        if module.global_rank == 0:
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(json.dumps(batches, indent=1, ensure_ascii=False), encoding="utf-8")
        rows = [row for batch in batches for row in batch["rows"] if row["suspect"]]
        named = ", ".join(row["source"] or f"row {row['row']}" for row in rows[:NAMED])
        more = f" and {len(rows) - NAMED} more" if len(rows) > NAMED else ""
        where = f" It is in {named}{more}." if rows else ""
        raise UserError(
            f"{what}, so training stopped before that step, with weights as they were.{where} "
            f"The batches of the step are in {file}. Look there for rows that make no sense; if there are none, lower the "
            "learning rate, set trainer.gradient_clip_val, or train in bf16-mixed or float32 in place of 16-bit floats."
        )


def described(batch: Any, losses: Tensor, module: LightningModule) -> dict[str, Any]:
    """A batch for people to read: its rows, and which of them have a loss that is not finite."""
    groups = getattr(batch, "batch", batch)
    bad = losses.isfinite().logical_not().cpu()
    if not isinstance(groups, GroupBatch):
        return {"losses": len(bad), "not_finite": int(bad.sum()), "rows": []}
    suspects = _groups_of(bad, groups)
    lengths = groups.response_lengths.tolist()
    responses = [_decoded(module, ids.tolist()) for ids in torch.split(groups.targets.cpu(), lengths)]
    of_group = groups.group_index.tolist()
    rows = [
        {
            "row": row,
            **_of_data(module, row),
            "responses": [text for text, owner in zip(responses, of_group, strict=True) if owner == number],
            "suspect": number in suspects,
        }
        for number, row in enumerate(groups.rows.tolist())
    ]
    return {"losses": len(bad), "not_finite": int(bad.sum()), "rows": rows}


def _groups_of(bad: Tensor, groups: GroupBatch) -> set[int]:
    """The groups whose losses are bad, as far as the number of losses tells what each of them belongs to."""
    group_index, response_index = groups.group_index.cpu(), groups.response_index.cpu()
    owners = {
        len(response_index): group_index[response_index],
        len(group_index): group_index,
        groups.n_groups: torch.arange(groups.n_groups),
    }.get(len(bad))
    return set() if owners is None else set(owners[bad].tolist())


def _of_data(module: LightningModule, row: int) -> dict[str, Any]:
    """Where a row came from, and its prompt, where the DataModule knows."""
    training_row = getattr(getattr(module.trainer, "datamodule", None), "training_row", None)
    if training_row is None:
        return {"source": "", "prompt": None}
    source, tokens = training_row(row)
    return {"source": source, "prompt": _decoded(module, list(tokens.prompt))}


def _decoded(module: LightningModule, ids: list[int]) -> Any:
    tokenizer: Any = getattr(module, "tokenizer", None)
    return ids if tokenizer is None else tokenizer.decode(ids)
