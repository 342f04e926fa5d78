"""What a number from samples is worth: means over fixed prompts with their standard errors, win rates with an interval.

Tables are `(X, K)`: X prompts, K responses to each. The prompts are taken as given, and only the responses as drawn: a standard
error says how far the mean would move if other responses were drawn to the same prompts, and an interval covers what the mean
over these prompts is, not over prompts that were not asked. With K = 1 the two cannot be told apart, and the difference between
prompts is counted in: the error is then too large rather than too small.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from lit_align.errors import UserError

Z = 1.959964
"""The normal distribution has 95 % within so many standard deviations."""

NEWTON_STEPS = 30
RIDGE = 1e-2
"""Curvature, in comparisons, that keeps the regression finite where length alone tells wins from losses."""


class Estimate(NamedTuple):
    """A mean of samples.

    Args:
        mean: In the unit of what was averaged.
        std_error: Standard deviation of the mean over draws of the responses.
    """

    mean: float
    std_error: float


class WinRateEstimate(NamedTuple):
    """How often one side wins.

    Args:
        rate: Share of comparisons won, a tie counted as half.
        low: Lower end of the 95 % interval.
        high: Upper end.
    """

    rate: float
    low: float
    high: float


def over_prompts(values: Tensor) -> Estimate:
    """Mean over fixed prompts, stratified: the error is that within the prompts, sqrt(sum_x s_x^2 / K) / X.

    s_x is the standard deviation of a prompt's K values around their own mean. With K = 1 it is the standard deviation over
    prompts divided by sqrt(X).

    Args:
        values: `(X, K)`.

    Raises:
        UserError: There is only one value.
    """
    n_prompts, k = values.shape
    if values.numel() < 2:
        raise UserError("One response has no standard error: sample to more prompts, or set k to 2 or more.")
    values = values.double()
    if k == 1:
        return Estimate(values.mean().item(), math.sqrt(values.var().item() / n_prompts))
    return Estimate(values.mean().item(), math.sqrt(values.var(dim=1).sum().item() / k) / n_prompts)


def win_rate(scores: Tensor) -> WinRateEstimate:
    """Win rate with Wilson's 95 % interval (Wilson 1927), for as many independent comparisons as the scores are worth.

    The interval is for independent comparisons of equal standing, and those to one prompt are not. So it is not given
    their number but n = rate (1 - rate) / std_error^2 with the error of `over_prompts`: what a plain proportion with that error
    would have come from, as for samples in strata (Korn and Graubard 1998). Ties, which vary less than wins and
    losses, make n larger. Where nothing varies, n is the number of comparisons.

    Args:
        scores: 1 for a win, a half for a tie, 0 for a loss, `(X, K)`.

    Raises:
        UserError: There is only one comparison.
    """
    rate, error = over_prompts(scores)
    n = rate * (1 - rate) / error**2 if error > 0 else float(scores.numel())
    middle = (rate + Z**2 / (2 * n)) / (1 + Z**2 / n)
    half = Z * math.sqrt(rate * (1 - rate) / n + Z**2 / (4 * n**2)) / (1 + Z**2 / n)
    return WinRateEstimate(rate, max(0.0, middle - half), min(1.0, middle + half))


def length_controlled(scores: Tensor, length_differences: Tensor) -> float:
    """The win rate that would be had with answers of equal length: sigmoid(a) of the fit score ~ sigmoid(a + b z).

    z is the difference of lengths divided by its root mean square, so that 0 stays equal length. The idea is that of Dubois et
    al. 2024 (2404.04475), the number is not: AlpacaEval also fits a term for each instruction and squashes z.

    Args:
        scores: 1, a half or 0, `(N,)`.
        length_differences: First answer's length minus the second's, any unit, `(N,)`.

    Returns:
        A probability; the plain mean where all lengths are equal.
    """
    scores, differences = scores.double(), length_differences.double()
    scale = differences.square().mean().sqrt()
    if scale == 0:
        return scores.mean().item()
    features = torch.stack([torch.ones_like(differences), differences / scale], dim=1)
    ridge = RIDGE * torch.eye(2, dtype=torch.float64)
    weights = torch.zeros(2, dtype=torch.float64)
    for _ in range(NEWTON_STEPS):
        p = (features @ weights).sigmoid()
        gradient = features.T @ (scores - p) - ridge @ weights
        curvature = (features.T * (p * (1 - p))) @ features + ridge
        weights = weights + torch.linalg.solve(curvature, gradient)
    return torch.sigmoid(weights[0]).item()
