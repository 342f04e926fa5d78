"""Exact probabilities that one response beats another: win rates, and the accuracy of reward models.

Tables are `(X, S)` float64: X prompts, S responses each, log-probabilities in nats. Nothing here is `S x S`.
"""

from __future__ import annotations

import torch
from torch import Tensor


def win_rate(logps: Tensor, ref_logps: Tensor, rewards: Tensor) -> Tensor:
    """How often a response of the policy has more reward than one of the reference, ties as half a win.

    Args:
        logps: Log-probabilities of the policy, `(X, S)`.
        ref_logps: Of the reference it is compared with, `(X, S)`.
        rewards: `(X, S)`; equal floats are ties.

    Returns:
        A probability for each prompt, `(X,)`.
    """
    rates = []
    for p, q, row in zip(logps.exp(), ref_logps.exp(), rewards, strict=True):
        values, level = torch.unique(row, return_inverse=True)
        wins = _mass_below(level, q, len(values))
        rates.append((p * wins[level]).sum())
    return torch.stack(rates)


def pair_accuracy(logps: Tensor, gold: Tensor, rewards: Tensor) -> Tensor:
    """How often a reward model agrees with the label of a pair.

    A pair is two different responses, drawn independently from `logps`, of which one is labelled better with
    probability sigmoid(gold difference). Equal rewards count as half right. With `rewards` equal to `gold` this is the
    Bayes accuracy, the best that any reward model can have.

    Computed over every pair, exactly: pairs are sorted by reward and summed up by the distinct values of gold, which takes
    S x (distinct values) steps a prompt.

    Args:
        logps: Log-probabilities of what draws the pairs, `(X, S)`.
        gold: What labels them, `(X, S)`.
        rewards: The reward model's, `(X, S)`.

    Returns:
        A probability for each prompt, `(X,)`.
    """
    rows = zip(logps.exp(), gold, rewards, strict=True)
    return torch.stack([_pair_accuracy(p, row_gold, row_rewards) for p, row_gold, row_rewards in rows])


def _pair_accuracy(p: Tensor, gold: Tensor, rewards: Tensor) -> Tensor:
    """`pair_accuracy` of one prompt: three `(S,)` tensors to a scalar."""
    values, level = torch.unique(rewards, return_inverse=True)
    right = p.new_zeros(())
    for rival_gold in torch.unique(gold):
        rivals = torch.where(gold == rival_gold, p, 0.0)
        below = _mass_below(level, rivals, len(values))[level]
        right += (p * (gold - rival_gold).sigmoid() * below).sum()
    equal = p.square().sum()  # pairs of a response with itself, which are drawn again; they were counted as half right
    # Twice, because `right` has the pairs whose first response is labelled better, and the others mirror them.
    return (2 * right - equal / 2) / (1 - equal)


def _mass_below(level: Tensor, mass: Tensor, n_levels: int) -> Tensor:
    """Mass strictly below each level plus half of that on it: `(S,)` levels and masses to `(n_levels,)`."""
    on = mass.new_zeros(n_levels).index_add(0, level, mass)
    return on.cumsum(0) - on / 2
