"""Whether a reward model's probabilities come true."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

BINS = 15


class Calibration(NamedTuple):
    """Pairs in bins of the probability that the model gave, both ways round.

    Args:
        predicted: Mean probability in each bin that is not empty, `(B,)`.
        happened: Share that came true there, `(B,)`.
        share: Of all pairs, `(B,)`.
    """

    predicted: Tensor
    happened: Tensor
    share: Tensor

    @property
    def ece(self) -> float:
        """Expected calibration error: sum of share |predicted - happened| (Guo et al. 2017, 1706.04599, equation 5)."""
        return float((self.share * (self.predicted - self.happened).abs()).sum())


def calibration(margins: Tensor) -> Calibration:
    """Calibration of sigmoid(margin) as the probability that the first of a pair is the preferred one, in 15 equal bins.

    Every pair counts twice, as (better, worse), which came true, and as (worse, better), which did not: only then is there
    anything to predict.

    Args:
        margins: Reward of the preferred response minus that of the other, `(P,)`, P at least 1.
    """
    predicted = torch.cat([margins, -margins]).double().sigmoid()
    happened = torch.cat([torch.ones_like(margins), torch.zeros_like(margins)]).double()
    bins = (predicted * BINS).long().clamp(max=BINS - 1)
    counts = torch.bincount(bins, minlength=BINS).double()
    filled = counts > 0

    def mean(values: Tensor) -> Tensor:
        return torch.bincount(bins, weights=values, minlength=BINS)[filled] / counts[filled]

    return Calibration(mean(predicted), mean(happened), counts[filled] / len(predicted))
