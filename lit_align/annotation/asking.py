"""Putting pairs before judges and answers before rewards, so that no verdict is lost and none is asked for twice."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from lit_align.annotation.candidates import Candidates
from lit_align.annotation.records import Records, Row
from lit_align.feedback import Answer, Judge, LLMJudge, RewardSource
from lit_align.feedback.llm_judge import Judgements

Pairs = list[list[tuple[int, int]]]
"""For each row the pairs of its answers, by their numbers, that are compared; none where the list is empty."""

OnRows = Callable[[int, int], None]
"""Called with the number of rows that are through, and of verdicts among the last ones."""


def ask_judges(
    judges: Sequence[Judge],
    rows: Sequence[Candidates],
    pairs: Pairs,
    records: Records,
    batch_size: int,
    on_rows: OnRows,
) -> list[Tensor]:
    """What each judge says of each pair, in both orders.

    One judge after the other goes through all rows. After each `batch_size` rows the verdicts are on the disk.

    Args:
        judges: J judges.
        rows: The answers.
        pairs: What is compared, P pairs in all.
        records: The verdicts so far, which are not asked for again.
        batch_size: Rows that a judge is given at once.
        on_rows: Told of progress.

    Returns:
        For each judge, the probability that the first answer of a pair is better when it is shown first, and when it is shown
        second, `(P, 2)`.
    """

    def ask(judge: int, batch: list[int]) -> Iterator[Row]:
        first = [rows[row].answers[i] for row in batch for i, _ in pairs[row]]
        second = [rows[row].answers[j] for row in batch for _, j in pairs[row]]
        said = _judgements(judges[judge], first, second)
        by_order, critiques = iter(said.by_order.tolist()), iter(said.critiques)
        for row in batch:
            line = {
                "judge": judge,
                "row": row,
                "pairs": pairs[row],
                "probabilities": [next(by_order) for _ in pairs[row]],
            }
            yield line | ({"critiques": [next(critiques) for _ in pairs[row]]} if said.critiques else {})

    wanted = [(judge, row) for judge in range(len(judges)) for row in range(len(rows)) if pairs[row]]
    _ask(ask, wanted, records, batch_size, on_rows)
    said: list[list[list[float]]] = [[] for _ in judges]
    for line in records.read():
        said[line["judge"]] += line["probabilities"]
    return [torch.tensor(of_judge, dtype=torch.float64).reshape(-1, 2) for of_judge in said]


def _judgements(judge: Judge, first: Sequence[Answer], second: Sequence[Answer]) -> Judgements:
    """What a judge says, with its critiques where it writes some."""
    if isinstance(judge, LLMJudge):
        return judge.judgements(first, second)
    return Judgements(judge.by_order(first, second), [])


def ask_reward(
    reward: RewardSource,
    rows: Sequence[Candidates],
    wanted: Sequence[Sequence[int]],
    records: Records,
    batch_size: int,
    on_rows: OnRows,
) -> list[dict[int, float]]:
    """Scores of answers; as `ask_judges`.

    Args:
        reward: What scores them.
        rows: The answers.
        wanted: For each row the numbers of the answers to score.
        records: The scores so far, which are not asked for again.
        batch_size: Rows that are scored at once.
        on_rows: Told of progress.

    Returns:
        For each row, scores by the number of the answer.
    """

    def ask(_: int, batch: list[int]) -> Iterator[Row]:
        scores = iter(reward([rows[row].answers[i] for row in batch for i in wanted[row]]).total.tolist())
        for row in batch:
            yield {"row": row, "answers": list(wanted[row]), "scores": [next(scores) for _ in wanted[row]]}

    _ask(ask, [(0, row) for row in range(len(rows)) if wanted[row]], records, batch_size, on_rows)
    scored: list[dict[int, float]] = [{} for _ in rows]
    for line in records.read():
        scored[line["row"]] = dict(zip(line["answers"], line["scores"], strict=True))
    return scored


def _ask(
    ask: Callable[[int, list[int]], Iterator[Row]],
    wanted: Sequence[tuple[int, int]],
    records: Records,
    batch_size: int,
    on_rows: OnRows,
) -> None:
    """Asks for what of `wanted`, a judge and a row each, is not in the records; a batch of one judge's rows at a time."""
    on_rows(len(records), 0)
    while len(records) < len(wanted):
        judge = wanted[len(records)][0]
        batch = [row for of, row in wanted[len(records) : len(records) + batch_size] if of == judge]
        lines = list(ask(judge, batch))
        records.append(lines)
        given = [line["probabilities"] if "probabilities" in line else line["scores"] for line in lines]
        on_rows(len(records), sum(map(len, given)))
