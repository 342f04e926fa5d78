"""Responses to preferences, rankings or scores."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lit_align.annotation import labels
from lit_align.annotation.asking import OnRows, Pairs, ask_judges, ask_reward
from lit_align.annotation.candidates import Candidates, Reading
from lit_align.annotation.records import Records, Row, begin, digest, note, write_rows, write_whole
from lit_align.annotation.report import report
from lit_align.annotation.request import Request
from lit_align.errors import UserError
from lit_align.feedback import Judge, RewardSource
from lit_align.feedback.selection import select_pairs

Progress = Callable[[str, int], AbstractContextManager[OnRows]]
"""Makes a progress bar of a title and a number of rows."""


class Raters(NamedTuple):
    """Who is asked, each as the object and as what it was built from.

    Args:
        judges: Those who compare. None where a reward scores.
        reward: What scores, or None.
        ensemble: Rewards that say which pairs are worth a comparison.
    """

    judges: list[tuple[Judge, Any]]
    reward: tuple[RewardSource, Any] | None
    ensemble: list[tuple[RewardSource, Any]]


class Outcome(NamedTuple):
    """What was said.

    Args:
        pairs: What was compared, P pairs in all.
        probabilities: That the first answer of each pair is the better one, `(P,)`.
        by_order: The same of each judge in both orders, `(P, 2)` each; empty where a reward scored.
        scores: For each row scores by the number of the answer, where a reward scored.
    """

    pairs: Pairs
    probabilities: Tensor
    by_order: list[Tensor]
    scores: list[dict[int, float]] | None


HOW_ASKED = ("batch_size", "budget", "cache", "concurrency", "requests_per_minute", "retries", "timeout")
"""Arguments of judges and rewards that change no verdict: who ran into a limit raises it and goes on."""


def verdicts_file(out: Path) -> Path:
    """Where each verdict stands as soon as it is given."""
    return out.with_name(f"{out.name}.verdicts.jsonl")


def report_file(out: Path) -> Path:
    """Where the statistics stand."""
    return out.with_name(f"{out.name}.report.json")


def annotate_file(
    rows: Sequence[Candidates],
    source: Row,
    reading: Reading,
    request: Request,
    raters: Raters,
    out: Path,
    progress: Progress,
) -> Row:
    """Judges what is not judged yet, and writes the rows and the report.

    Args:
        rows: The answers.
        source: Where they are from, for the settings.
        reading: What became of the rows of the file.
        request: What is asked.
        raters: Who is asked.
        out: The file of rows to write.
        progress: Shows what goes on.

    Returns:
        The report.

    Raises:
        UserError: The file was begun with other settings, or the rows lack scores that are needed.
    """
    known = begin(out, _settings(rows, source, request, raters), verdicts_file(out))
    selected = None if request.select is None else _selected(rows, request, raters, known, out, progress)
    records = Records(verdicts_file(out))
    if raters.reward is None:
        outcome = _by_judges(rows, selected, request, raters, records, progress)
    else:
        outcome = _by_reward(rows, selected, request, raters.reward[0], records, progress)
    made = _rows(rows, request, outcome)
    write_rows(out, made)
    said = report(rows, outcome.pairs, [name for _, name in raters.judges], outcome.by_order, outcome.probabilities)
    said = {"read": asdict(reading), "written": len(made), **said}
    write_whole(report_file(out), json.dumps(said, indent=2) + "\n")
    return said


def _settings(rows: Sequence[Candidates], source: Row, request: Request, raters: Raters) -> Row:
    """All that decides which verdicts are asked for, and from whom."""
    asked = asdict(request)
    for name in ("judges", "ensemble", "batch_size"):
        del asked[name]  # how many there are is said below; how many rows at once changes no verdict
    texts = [[row.answers[0].prompt, [answer.response for answer in row.answers], row.scores] for row in rows]
    return {
        "responses": {**source, "number": len(rows), "hash": digest(texts)},
        "judges": [_what(made_of) for _, made_of in raters.judges],
        "reward": None if raters.reward is None else _what(raters.reward[1]),
        "ensemble": [_what(made_of) for _, made_of in raters.ensemble],
        **asked,
    }


def _what(made_of: Any) -> Any:
    """What a judge was built from, without what decides only how it is asked."""
    if not isinstance(made_of, dict):
        return made_of
    return {name: _what(value) for name, value in made_of.items() if name not in HOW_ASKED}


def _selected(
    rows: Sequence[Candidates], request: Request, raters: Raters, known: Row, out: Path, progress: Progress
) -> Pairs:
    """The pairs of a selection. They are noted at the first start, so that every later one asks about the same."""
    assert request.select is not None
    assert request.budget is not None
    if "selected" not in known:
        sizes = torch.tensor([len(row.answers) for row in rows])
        rewards = _ensemble_rewards(rows, raters.ensemble, request.batch_size, progress) if raters.ensemble else None
        generator = torch.Generator().manual_seed(request.seed or 0)
        group_index = torch.arange(len(rows)).repeat_interleave(sizes)
        chosen = select_pairs(request.select, rewards, group_index, request.budget, generator)
        first = (sizes.cumsum(0) - sizes)[group_index[chosen[:, 0]]]
        pairs: Pairs = [[] for _ in rows]
        for row, (i, j) in zip(group_index[chosen[:, 0]].tolist(), (chosen - first[:, None]).tolist(), strict=True):
            pairs[row].append((i, j))
        known["selected"] = {row: of_row for row, of_row in enumerate(pairs) if of_row}
        note(out, known)
    selected = {int(row): of_row for row, of_row in known["selected"].items()}
    return [[(i, j) for i, j in selected.get(row, ())] for row in range(len(rows))]


def _ensemble_rewards(
    rows: Sequence[Candidates], ensemble: Sequence[tuple[RewardSource, Any]], batch_size: int, progress: Progress
) -> Tensor:
    """What each member says of every answer, `(E, N)`."""
    said: list[Tensor] = []
    with progress("asking the ensemble", len(ensemble) * len(rows)) as update:
        for member, (reward, _) in enumerate(ensemble):
            parts = []
            for start in range(0, len(rows), batch_size):
                answers = [answer for row in rows[start : start + batch_size] for answer in row.answers]
                parts.append(reward(answers).total)
                update(member * len(rows) + min(start + batch_size, len(rows)), len(answers))
            said.append(torch.cat(parts))
    return torch.stack(said)


def _by_judges(
    rows: Sequence[Candidates],
    selected: Pairs | None,
    request: Request,
    raters: Raters,
    records: Records,
    progress: Progress,
) -> Outcome:
    pairs = selected
    if pairs is None:
        if request.pairs == "best_worst" and any(row.scores is None for row in rows):
            raise UserError(
                "--pairs best_worst needs to know which are best and worst before it asks a judge, and there are rows without "
                "scores. Annotate them with --kind scores first, or compare --pairs all."
            )
        pairs = [labels.pairs_of_row(request.pairs_of_row, len(row.answers), row.scores) for row in rows]
    judges = [judge for judge, _ in raters.judges]
    with progress("judging", len(judges) * sum(map(bool, pairs))) as update:
        by_order = ask_judges(judges, rows, pairs, records, request.batch_size, update)
    return Outcome(pairs, torch.stack(by_order).mean(dim=(0, 2)), by_order, None)


def _by_reward(
    rows: Sequence[Candidates],
    selected: Pairs | None,
    request: Request,
    reward: RewardSource,
    records: Records,
    progress: Progress,
) -> Outcome:
    if selected is None and request.pairs_of_row != "first":
        wanted = [list(range(len(row.answers))) for row in rows]
    else:
        wanted = [sorted({i for pair in of_row for i in pair}) for of_row in selected or [[(0, 1)]] * len(rows)]
    with progress("scoring", sum(map(bool, wanted))) as update:
        scores = ask_reward(reward, rows, wanted, records, request.batch_size, update)
    pairs = selected
    if pairs is None:
        of_all = [[of.get(i, 0.0) for i in range(len(row.answers))] for row, of in zip(rows, scores, strict=True)]
        pairs = [labels.pairs_of_row(request.pairs_of_row, len(values), values) for values in of_all]
    gaps = [scores[row][i] - scores[row][j] for row, of_row in enumerate(pairs) for i, j in of_row]
    return Outcome(pairs, torch.tensor(gaps, dtype=torch.float64).sigmoid(), [], scores)


def _rows(rows: Sequence[Candidates], request: Request, outcome: Outcome) -> list[Row]:
    probabilities = outcome.probabilities.tolist()
    if request.kind == "preferences":
        return labels.preference_rows(rows, outcome.pairs, probabilities, outcome.scores)
    if outcome.scores is not None:
        values = [[of_row[i] for i in range(len(of_row))] for of_row in outcome.scores]
    else:
        values, start = [], 0
        for row, pairs in zip(rows, outcome.pairs, strict=True):
            values.append(labels.win_rates(pairs, probabilities[start : start + len(pairs)], len(row.answers)))
            start += len(pairs)
    return labels.scored_rows(rows, values, request.kind)
