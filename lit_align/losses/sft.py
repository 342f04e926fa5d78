"""Losses of supervised fine-tuning: one value for every response token.

Where rows weigh their tokens the module multiplies the values by the weights, so a loss knows nothing of them.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from lit_align.errors import UserError
from lit_align.losses.checks import require_positive


@dataclass(frozen=True)
class SFTLoss(ABC):
    """What `SFT` minimises. A loss of your own is a frozen dataclass that derives from this class."""

    @abstractmethod
    def __call__(self, logps: Tensor, response_index: Tensor, labels: Tensor | None) -> Tensor:
        """One value for every response token.

        Args:
            logps: Log-probability of each response token, nats, `(M,)`.
            response_index: The response each token belongs to, sorted, `(M,)`.
            labels: True where a response is desirable, boolean `(N,)`; None where rows carry no labels.

        Returns:
            `(M,)`. The module averages over all tokens of an optimiser step, on all ranks.

        Raises:
            UserError: If the loss cannot learn from labelled responses, or only from them.
        """


@dataclass(frozen=True)
class NLL(SFTLoss):
    """Negative log-likelihood of each response token: `-log pi(y_t | x, y_<t)`, every token of a step weighing the same."""

    def __call__(self, logps: Tensor, response_index: Tensor, labels: Tensor | None) -> Tensor:
        """The loss of each response token, `(M,)`."""
        if labels is not None:
            raise UserError(
                "NLL makes every response likelier, and these are labelled desirable or not. Use Unlikelihood, or KTO."
            )
        return -logps


@dataclass(frozen=True)
class Unlikelihood(SFTLoss):
    """Likelihood of desirable responses, unlikelihood of the others: `-log p_t` or `-alpha log(1 - p_t)` (1908.04319).

    For labelled rows, and for text that a person stopped: what came just before the stop is made less likely, and no better
    continuation is invented. Nothing but the desirable rows keeps the policy fluent, so mix some in.

    Args:
        window: Of an undesirable response only the last so many tokens are made less likely, and those before, which the
            person let pass, cost 0. For early stops: the tokens a reader takes to react. None for all of its tokens.
        alpha: Weight of unlikelihood against likelihood. Positive.
    """

    window: int | None = None
    alpha: float = 1.0

    def __post_init__(self) -> None:
        require_positive("alpha", self.alpha)
        if self.window is not None and self.window < 1:
            raise UserError(f"window is a number of tokens, at least 1, or null for all, not {self.window}.")

    def __call__(self, logps: Tensor, response_index: Tensor, labels: Tensor | None) -> Tensor:
        """The loss of each response token, `(M,)`."""
        if labels is None:
            raise UserError(
                "Unlikelihood needs rows with labels (LabelData), and these have none: use NLL for demonstrations."
            )
        # A token the policy is certain of has log-probability 0 in float32, and infinite unlikelihood.
        certain = logps.clamp(max=-torch.finfo(torch.float32).eps)
        unlikelihood = -self.alpha * torch.log(-torch.expm1(certain))
        if self.window is not None:
            ends = torch.bincount(response_index, minlength=len(labels)).cumsum(0)[response_index]
            is_near = ends - torch.arange(len(logps), device=logps.device) <= self.window
            unlikelihood = torch.where(is_near, unlikelihood, 0.0)
        return torch.where(labels[response_index], -logps, unlikelihood)
