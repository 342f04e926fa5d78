"""The losses of proximal policy optimisation (Schulman et al. 2017, arXiv 1707.06347), one value a response token."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from lit_align.losses.checks import require_positive
from lit_align.losses.kl import MAX_LOG_RATIO, k3


class PolicyLosses(NamedTuple):
    """A policy-gradient loss and what is worth watching about it; all but the first without gradient.

    Args:
        losses: What is minimised, one value a response token, `(M,)`.
        ratio: pi / pi_old of each token, `(M,)`; 1 at the first minibatch after a rollout.
        clipped: True where the clip holds the token back, so that it has no gradient, `(M,)`.
        approx_kl: k3 estimate of KL(pi_old || pi), nats, `(M,)`.
    """

    losses: Tensor
    ratio: Tensor
    clipped: Tensor
    approx_kl: Tensor


class PolicyLoss(ABC):
    """A policy-gradient loss on the tokens of a rollout."""

    @abstractmethod
    def __call__(self, logps: Tensor, old_logps: Tensor, advantages: Tensor, response_index: Tensor) -> PolicyLosses:
        """One loss a response token.

        Args:
            logps: Of the tokens drawn, under the policy, nats, `(M,)`; carries the gradient.
            old_logps: Of the same tokens when they were drawn, nats, `(M,)`.
            advantages: How much better each token was than expected, `(M,)`.
            response_index: The response each token belongs to, `(M,)`, for losses that look at whole responses.
        """


@dataclass(frozen=True)
class PPOLoss(PolicyLoss):
    """PPO's clipped surrogate; see `clipped_policy_loss`.

    Args:
        clip: How far from 1 the ratio of probabilities is rewarded for going.
    """

    clip: float = 0.2

    def __post_init__(self) -> None:
        require_positive("clip", self.clip)

    def __call__(self, logps: Tensor, old_logps: Tensor, advantages: Tensor, response_index: Tensor) -> PolicyLosses:
        """One loss a response token; each token stands for itself, whatever response it is of."""
        return clipped_policy_loss(logps, old_logps, advantages, self.clip)


def clipped_policy_loss(logps: Tensor, old_logps: Tensor, advantages: Tensor, clip: float) -> PolicyLosses:
    """-min(rho A, clip(rho, 1 - eps, 1 + eps) A) with rho = pi / pi_old (arXiv 1707.06347, eq. 7, to be minimised).

    Departure: rho is cut off at e^20, where float32 could turn into infinity times 0.

    Args:
        logps: Of the tokens drawn, under the policy, nats, `(M,)`.
        old_logps: Of the same tokens when they were drawn, nats, `(M,)`; no gradient reaches it.
        advantages: `(M,)`; no gradient reaches it.
        clip: eps.
    """
    old_logps, advantages = old_logps.detach(), advantages.detach()
    ratio = (logps - old_logps).clamp(max=MAX_LOG_RATIO).exp()
    free = -advantages * ratio
    held = -advantages * ratio.clamp(1 - clip, 1 + clip)
    with torch.no_grad():
        # KL(pi_old || pi) from tokens of pi_old: here the old policy is the one that was sampled.
        approx_kl = k3(old_logps, logps)
    return PolicyLosses(torch.maximum(free, held), ratio.detach(), held.detach() > free.detach(), approx_kl)


def clipped_value_loss(values: Tensor, old_values: Tensor, returns: Tensor, clip: float) -> Tensor:
    """max((V - R)^2, (V_clip - R)^2) / 2 with V_clip = V_old + clip(V - V_old, -eps, eps).

    It is not in the PPO paper but in its code, and in that of Ziegler et al. 2019, whose factor 1/2 it has here (Huang et al.
    2024, "The N+ Implementation Details of RLHF with PPO"). The larger of the two errors counts: a value that has moved
    further than eps in one update gains nothing by moving on.

    Args:
        values: The critic's, reward units, `(M,)`.
        old_values: The critic's when the tokens were drawn, `(M,)`; no gradient reaches it.
        returns: What it should have said, `(M,)`; no gradient reaches it.
        clip: eps, reward units.

    Returns:
        `(M,)`, squared reward units.
    """
    require_positive("clip", clip)
    old_values, returns = old_values.detach(), returns.detach()
    near = old_values + (values - old_values).clamp(-clip, clip)
    return torch.maximum((values - returns).square(), (near - returns).square()) / 2
