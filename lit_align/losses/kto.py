"""Losses on single responses that carry a label, desirable or not."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from lit_align.losses.checks import require_not_negative, require_positive


@dataclass(frozen=True)
class LabelLoss(ABC):
    """What `KTO` minimises. A loss of your own is a frozen dataclass that derives from this class.

    Args:
        beta: Scale of the implicit reward: how strongly the policy is held to the reference. Positive.
    """

    beta: float = 0.1

    def __post_init__(self) -> None:
        require_positive("beta", self.beta)

    @abstractmethod
    def __call__(self, log_ratios: Tensor, labels: Tensor, z0: Tensor) -> Tensor:
        """One value a response.

        Args:
            log_ratios: h = log pi(y|x) / pi_ref(y|x), summed over response tokens, nats, `(N,)`.
            labels: True where the response is desirable, boolean `(N,)`.
            z0: How far the policy is from the reference: the mean log-ratio of prompts with responses of other prompts, over
                all ranks, nats, a scalar.

        Returns:
            `(N,)`. The module averages over all responses of an optimiser step, on all ranks.
        """

    def rewards(self, log_ratios: Tensor) -> Tensor:
        """Implicit rewards for logging, beta h, without gradient, `(N,)`."""
        return self.beta * log_ratios.detach()


@dataclass(frozen=True)
class KTO(LabelLoss):
    """Kahneman-Tversky optimisation (2402.01306, eq. 7): a response is worth what it gains on z0, and gains saturate.

    `lambda_D (1 - sigmoid(beta (h - z0)))` where desirable, `lambda_U (1 - sigmoid(beta (z0 - h)))` where not. z0 estimates a
    KL divergence, so a negative one is taken as 0, and no gradient runs through it.

    Args:
        desirable_weight: lambda_D. Not negative.
        undesirable_weight: lambda_U. Not negative. With n_D desirable and n_U undesirable responses the paper advises
            lambda_D n_D / (lambda_U n_U) between 1 and 4/3 (eq. 8).
    """

    desirable_weight: float = 1.0
    undesirable_weight: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        require_not_negative("desirable_weight", self.desirable_weight)
        require_not_negative("undesirable_weight", self.undesirable_weight)

    def __call__(self, log_ratios: Tensor, labels: Tensor, z0: Tensor) -> Tensor:
        """The loss of each response, `(N,)`."""
        gains = self.beta * (log_ratios - z0.detach().clamp(min=0))
        return torch.where(
            labels,
            self.desirable_weight * (-gains).sigmoid(),
            self.undesirable_weight * gains.sigmoid(),
        )
