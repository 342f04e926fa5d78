"""The shape of responses, whatever they say: how long, how repetitive, how unlike each other; and how far it has moved."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

from torch import Tensor


def repetition(ids: Sequence[int]) -> float:
    """Share of a response's tokens that it has had before: 1 - distinct-1 of the response alone."""
    return 1 - len(set(ids)) / len(ids)


def distinct_bigrams(responses: Sequence[Sequence[int]]) -> float:
    """Distinct-2 (Li et al. 2016, 1510.03055): different pairs of neighbouring tokens, as a share of all such pairs.

    Args:
        responses: To one prompt. Where none has two tokens, it is 1.
    """
    pairs = [pair for ids in responses for pair in pairwise(ids)]
    return len(set(pairs)) / len(pairs) if pairs else 1.0


class Spread(NamedTuple):
    """What single responses of the reference are like.

    Args:
        mean: Over responses.
        std: Of one response.
    """

    mean: float
    std: float

    def shift(self, mean: float) -> float:
        """How far a mean has moved, in standard deviations of one response of the reference (Cohen's d, with its spread)."""
        return (mean - self.mean) / self.std


def spread(values: Tensor, least: float | None = None) -> Spread:
    """Mean and standard deviation of N values, any shape.

    Args:
        values: At least two.
        least: The smallest standard deviation. If not given, for values in [0, 1], that of something seen once in N + 2
            (Laplace's rule): that nothing was seen does not mean that it never happens.
    """
    values = values.double()
    n = values.numel()
    floor = math.sqrt(n + 1) / (n + 2) if least is None else least
    return Spread(values.mean().item(), max(values.std().item(), floor))


def rare(n: int) -> float:
    """Standard deviation of what happens in 3 of N cases, or always but in 3: seen in none of N, it may be as frequent as that.

    The rule of three: with 3 / N as its share, N cases without it have a probability of exp(-3), 5 %.
    """
    share = min(3 / n, 0.5)
    return math.sqrt(share * (1 - share))
