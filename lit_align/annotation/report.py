"""What the verdicts say of the judges."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from typing import Any

import torch
from torch import Tensor

from lit_align.annotation import agreement
from lit_align.annotation.asking import Pairs
from lit_align.annotation.candidates import Candidates
from lit_align.annotation.records import Row


def report(
    rows: Sequence[Candidates], pairs: Pairs, judges: Sequence[Any], by_order: Sequence[Tensor], probabilities: Tensor
) -> Row:
    """Ties, agreement and position bias, as plain values.

    Args:
        rows: The answers.
        pairs: The P pairs that were compared.
        judges: What each judge was built from.
        by_order: What each judge said in both orders, `(P, 2)` each; empty where a reward scored.
        probabilities: The label: that the first answer of each pair is the better one, `(P,)`.
    """
    scored = torch.tensor(
        [rows[row].scores is not None for row, of_row in enumerate(pairs) for _ in of_row], dtype=torch.bool
    )
    gaps = _score_gaps(rows, pairs)
    labels = agreement.verdicts(probabilities)
    said: Row = {
        "pairs": len(probabilities),
        "ties": int((labels == 0).sum()),
        "label_agrees_with_scores": agreement.as_json(agreement.with_scores(probabilities[scored], gaps[scored])),
        "judges": [],
        "agreement": [],
    }
    for judge, both in zip(judges, by_order, strict=True):
        one = both.mean(dim=1)
        # Judges without positions say the same twice, to the last bit.
        positions = {} if torch.equal(both[:, 0], both[:, 1]) else agreement.position_bias(both)
        said["judges"].append(
            {
                "judge": judge,
                "ties": int((agreement.verdicts(one) == 0).sum()),
                "confidence": agreement.as_json(agreement.mean(torch.maximum(one, 1 - one))),
                "agrees_with_scores": agreement.as_json(agreement.with_scores(one[scored], gaps[scored])),
                "position": {name: agreement.as_json(value) for name, value in positions.items()} or None,
            }
        )
    for i, j in combinations(range(len(judges)), 2):
        first, second = (agreement.verdicts(by_order[n].mean(dim=1)) for n in (i, j))
        share = agreement.as_json(agreement.agreement(first, second))
        said["agreement"].append({"judges": [i, j], "share": share, "kappa": agreement.kappa(first, second)})
    return said


def _score_gaps(rows: Sequence[Candidates], pairs: Pairs) -> Tensor:
    """Score of the first answer less that of the second one, `(P,)`; 0 where the row has no scores."""
    gaps = []
    for row, of_row in zip(rows, pairs, strict=True):
        scores = row.scores or [0.0] * len(row.answers)
        gaps += [scores[i] - scores[j] for i, j in of_row]
    return torch.tensor(gaps, dtype=torch.float64)
