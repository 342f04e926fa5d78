"""Losses of supervised fine-tuning: one value for every response token."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class SFTLoss(ABC):
    """What `SFT` minimises. A loss of your own is a frozen dataclass that derives from this class."""

    @abstractmethod
    def __call__(self, logps: Tensor, response_index: Tensor) -> Tensor:
        """One value for every response token.

        Args:
            logps: Log-probability of each response token, nats, `(M,)`.
            response_index: The response each token belongs to, sorted, `(M,)`.

        Returns:
            `(M,)`. The module averages over all tokens of an optimiser step, on all ranks.
        """


@dataclass(frozen=True)
class NLL(SFTLoss):
    """Negative log-likelihood of each response token: `-log pi(y_t | x, y_<t)`, every token of a step weighing the same."""

    def __call__(self, logps: Tensor, response_index: Tensor) -> Tensor:
        """The loss of each response token, `(M,)`."""
        return -logps
