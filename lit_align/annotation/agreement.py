"""How far judges agree: with each other, with scores, and with themselves when two answers change places.

Verdicts are probabilities that the first answer of a pair is the better one, `(P,)`. Intervals are at 95 % and take pairs as
independent, which several pairs of one row are not quite.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

Z = 1.959964
"""Two-sided 95 % of a normal distribution."""

TIE = 1e-6
"""A verdict no further than this from one half is a tie: what rounding makes of two halves."""


class Estimate(NamedTuple):
    """A share or a mean with its 95 % interval, and of how many pairs it is."""

    value: float
    low: float
    high: float
    pairs: int


def verdicts(probabilities: Tensor) -> Tensor:
    """1 where the first answer is the better one, -1 where the second one is, 0 for a tie: `(P,)` to `(P,)`."""
    return torch.where((probabilities - 0.5).abs() <= TIE, 0.0, (probabilities - 0.5).sign()).long()


def share(hits: Tensor) -> Estimate | None:
    """How often something holds, with Wilson's score interval (Wilson 1927); None of nothing.

    Args:
        hits: Booleans, `(P,)`.
    """
    n = len(hits)
    if n == 0:
        return None
    p = hits.double().mean().item()
    middle = (p + Z**2 / (2 * n)) / (1 + Z**2 / n)
    half = Z / (1 + Z**2 / n) * math.sqrt(p * (1 - p) / n + Z**2 / (4 * n**2))
    # At 0 and 1 the interval ends there, which rounding would miss by a digit.
    return Estimate(p, 0.0 if p == 0 else middle - half, 1.0 if p == 1 else middle + half, n)


def mean(values: Tensor) -> Estimate | None:
    """A mean with mean ± 1.96 standard errors; None of nothing, and no width to the interval of one value.

    Args:
        values: `(P,)`.
    """
    n = len(values)
    if n == 0:
        return None
    values = values.double()
    middle = values.mean().item()
    half = Z * values.std().item() / math.sqrt(n) if n > 1 else 0.0
    return Estimate(middle, middle - half, middle + half, n)


def agreement(first: Tensor, second: Tensor) -> Estimate | None:
    """The share of pairs on which two judges have the same verdict, a tie being one.

    Args:
        first: Verdicts in {-1, 0, 1}, `(P,)`.
        second: Those of the other judge.
    """
    return share(first == second)


def kappa(first: Tensor, second: Tensor) -> float | None:
    """Cohen's kappa (1960): (p_o - p_e) / (1 - p_e), with p_e the agreement of two judges who answer independently.

    Args:
        first: Verdicts in {-1, 0, 1}, `(P,)`.
        second: Those of the other judge.

    Returns:
        1 for judges who always agree, 0 for chance; None where both give one and the same verdict throughout.
    """
    if len(first) == 0:
        return None
    observed = (first == second).double().mean().item()
    expected = sum(
        (first == kind).double().mean().item() * (second == kind).double().mean().item() for kind in (-1, 0, 1)
    )
    return None if expected >= 1 else (observed - expected) / (1 - expected)


def with_scores(probabilities: Tensor, differences: Tensor) -> Estimate | None:
    """How often a judge prefers the answer with the higher score, over pairs whose scores differ and that it does not tie.

    Args:
        probabilities: `(P,)`.
        differences: Score of the first answer less that of the second one, `(P,)`.
    """
    said = verdicts(probabilities)
    both = (said != 0) & (differences != 0)
    return share(said[both] == differences[both].sign().long())


def position_bias(by_order: Tensor) -> dict[str, Estimate | None]:
    """What the order does to the verdicts.

    Args:
        by_order: Probability that the first answer is better when it is shown first, and when it is shown second, `(P, 2)`.

    Returns:
        `flips`: the share of pairs whose verdict is another one when the answers change places; of pairs with a verdict both
        times. `first`: the mean probability given to the answer that is shown first; 0.5 without bias.
    """
    shown_first, shown_second = verdicts(by_order[:, 0]), verdicts(by_order[:, 1])
    both = (shown_first != 0) & (shown_second != 0)
    return {
        "flips": share(shown_first[both] != shown_second[both]),
        "first": mean((by_order[:, 0] + 1 - by_order[:, 1]) / 2),
    }


def as_json(estimate: Estimate | None) -> dict[str, Any] | None:
    """An estimate as it is written down."""
    return None if estimate is None else estimate._asdict()
