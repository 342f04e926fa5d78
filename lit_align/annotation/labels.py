"""From verdicts to rows that train."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from typing import Literal

from lit_align.annotation.agreement import TIE
from lit_align.annotation.asking import Pairs
from lit_align.annotation.candidates import Candidates
from lit_align.annotation.records import Row

PairsOf = Literal["first", "all", "best_worst"]
Scores = Sequence[float]


def pairs_of_row(which: PairsOf, k: int, scores: Scores | None = None) -> list[tuple[int, int]]:
    """The pairs of K answers that are compared.

    Args:
        which: `first`, the first two; `all`, K (K - 1) / 2 of them; `best_worst`, the one with the highest against the one with
            the lowest score, none where all are equal.
        k: Answers, at least two.
        scores: K scores, for `best_worst`.
    """
    if which == "first":
        return [(0, 1)]
    if which == "all":
        return list(combinations(range(k), 2))
    assert scores is not None
    best, worst = max(range(k), key=lambda i: scores[i]), min(range(k), key=lambda i: scores[i])
    return [] if scores[best] == scores[worst] else [(best, worst)]


def win_rates(pairs: Sequence[tuple[int, int]], probabilities: Scores, k: int) -> list[float]:
    """The mean probability with which each of K answers is preferred to the others, from all their pairs.

    Args:
        pairs: All pairs of K answers.
        probabilities: That the first answer of each pair is the better one.
        k: Answers.
    """
    won = [0.0] * k
    for (i, j), p in zip(pairs, probabilities, strict=True):
        won[i] += p
        won[j] += 1 - p
    return [total / (k - 1) for total in won]


def places(scores: Scores) -> list[int]:
    """Places by score, 1 the best; equal scores share a place, and the places behind them are left empty."""
    return [1 + sum(other > score + TIE for other in scores) for score in scores]


def preference_rows(
    rows: Sequence[Candidates], pairs: Pairs, probabilities: Scores, scores: Sequence[dict[int, float]] | None
) -> list[Row]:
    """Pairs as `PreferenceData` reads them, without those that tie.

    Args:
        rows: The answers.
        pairs: The P pairs that were compared.
        probabilities: That the first answer of each pair is the better one, P of them.
        scores: For each row, scores by the number of the answer, where the verdicts come from them.
    """
    made: list[Row] = []
    verdicts = iter(probabilities)
    for number, row in enumerate(rows):
        for pair in pairs[number]:
            p = next(verdicts)
            if abs(p - 0.5) <= TIE:
                continue
            better, worse = pair if p > 0.5 else pair[::-1]
            made.append(
                {
                    "prompt": row.answers[0].prompt,
                    "chosen": row.answers[better].response,
                    "rejected": row.answers[worse].response,
                    "probability": max(p, 1 - p),
                }
            )
            if scores is not None:
                made[-1] |= {"score_chosen": scores[number][better], "score_rejected": scores[number][worse]}
            if row.models is not None:
                made[-1] |= {"model_chosen": row.models[better], "model_rejected": row.models[worse]}
    return made


def scored_rows(rows: Sequence[Candidates], scores: Sequence[Scores], kind: Literal["scores", "rankings"]) -> list[Row]:
    """Rows of responses as `RankingData` reads them, with `scores`, or with a `ranking` beside what it follows from."""
    made: list[Row] = []
    for row, values in zip(rows, scores, strict=True):
        beside: Row = {"finished": [answer.finished for answer in row.answers]}
        if row.models is not None:
            beside["models"] = list(row.models)
        known = {"scores": list(values)} if kind == "scores" else {"ranking": places(values), "ranked_by": list(values)}
        responses = [answer.response for answer in row.answers]
        made.append({"prompt": row.answers[0].prompt, "responses": responses, **known, **beside})
    return made
