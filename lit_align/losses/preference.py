"""Losses on pairs, of the log-ratio margin: DPO and what changes its link function, its labels or its margin.

Written with h = log pi(y|x) / pi_ref(y|x), summed over response tokens, and D = h_w - h_l. The losses that look at each
response by itself are in `preference_absolute`, the ones without a reference in `preference_free`.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch.nn.functional as F
from torch import Tensor

from lit_align.errors import UserError


class PairLogps(NamedTuple):
    """What is known of P pairs.

    Args:
        chosen: Log-probability of the better response under the policy, summed over its tokens, nats, `(P,)`.
        rejected: The same of the worse response, `(P,)`.
        ref_chosen: As `chosen`, under the reference, `(P,)`; None where the loss needs no reference.
        ref_rejected: As `rejected`, under the reference, `(P,)`; None where the loss needs no reference.
        chosen_length: Tokens of the better response, EOS included, `(P,)`.
        rejected_length: Tokens of the worse one, `(P,)`.
    """

    chosen: Tensor
    rejected: Tensor
    ref_chosen: Tensor | None
    ref_rejected: Tensor | None
    chosen_length: Tensor
    rejected_length: Tensor

    def log_ratios(self) -> tuple[Tensor, Tensor]:
        """h_w and h_l: log pi / pi_ref of the better and of the worse responses, nats, `(P,)` each."""
        if self.ref_chosen is None or self.ref_rejected is None:
            raise ValueError(
                "This loss compares with a reference: give ref_chosen and ref_rejected, or set needs_reference to False."
            )
        return self.chosen - self.ref_chosen, self.rejected - self.ref_rejected

    def mean_log_ratios(self) -> tuple[Tensor, Tensor]:
        """h_w / |w| and h_l / |l|: log-ratios per token, nats, `(P,)` each."""
        chosen, rejected = self.log_ratios()
        return chosen / self.chosen_length, rejected / self.rejected_length

    def margin(self) -> Tensor:
        """D = h_w - h_l, nats, `(P,)`."""
        chosen, rejected = self.log_ratios()
        return chosen - rejected


@dataclass(frozen=True)
class PreferenceLoss(ABC):
    """What `DPO` minimises. A loss of your own is a frozen dataclass that derives from this class.

    Args:
        beta: Scale of the implicit reward: how strongly the policy is held to the reference. Positive.
    """

    beta: float = 0.1

    needs_reference: ClassVar[bool] = True
    """Whether `PairLogps` must carry the reference's log-probabilities."""

    def __post_init__(self) -> None:
        require_positive("beta", self.beta)

    @abstractmethod
    def __call__(self, pairs: PairLogps) -> Tensor:
        """One value a pair, `(P,)`. The module averages over all pairs of an optimiser step, on all ranks."""

    def rewards(self, pairs: PairLogps) -> tuple[Tensor, Tensor]:
        """Implicit rewards of the better and of the worse responses, for logging, `(P,)` each, without gradient: beta h."""
        chosen, rejected = pairs.log_ratios()
        return self.beta * chosen.detach(), self.beta * rejected.detach()


def require_positive(name: str, value: float) -> None:
    """Refuses a hyper-parameter that is not a positive number.

    Raises:
        UserError: If it is zero, negative, infinite or not a number.
    """
    if not 0 < value < math.inf:
        raise UserError(f"{name} must be a positive number, not {value}.")


def require_flip_rate(epsilon: float) -> None:
    """Refuses an epsilon that is no rate of flipped labels.

    Raises:
        UserError: If it lies outside [0, 0.5): from 0.5 on, the labels would say nothing or the opposite.
    """
    if not 0 <= epsilon < 0.5:
        raise UserError(f"epsilon is the share of flipped labels and must lie in [0, 0.5), not {epsilon}.")


@dataclass(frozen=True)
class DPO(PreferenceLoss):
    """Direct preference optimisation: `-log sigmoid(beta D)` (2305.18290, eq. 7)."""

    def __call__(self, pairs: PairLogps) -> Tensor:
        """The loss of each pair, `(P,)`."""
        return -F.logsigmoid(self.beta * pairs.margin())


@dataclass(frozen=True)
class CDPO(PreferenceLoss):
    """Conservative DPO: `-(1 - e) log sigmoid(beta D) - e log sigmoid(-beta D)`.

    Cross-entropy with smoothed labels: the margin stops growing at beta D = log((1 - e) / e). Source: Mitchell 2023,
    "A note on DPO with noisy preferences and relationship to IPO".

    Args:
        epsilon: Share of pairs believed to be labelled the wrong way round, in [0, 0.5); 0 is DPO.
    """

    epsilon: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        require_flip_rate(self.epsilon)

    def __call__(self, pairs: PairLogps) -> Tensor:
        """The loss of each pair, `(P,)`."""
        logits = self.beta * pairs.margin()
        return -(1 - self.epsilon) * F.logsigmoid(logits) - self.epsilon * F.logsigmoid(-logits)


@dataclass(frozen=True)
class IPO(PreferenceLoss):
    """Identity preference optimisation: `(D - 1 / (2 beta))^2` (2310.12036, eq. 17, with beta for its tau).

    Args:
        beta: Strength of the pull to the reference; the margin is drawn to 1 / (2 beta) nats. Positive.
        length_average: Divide each log-ratio by the tokens of its response. The paper sums; averaging makes one beta serve
            responses of any length, and then 1 / (2 beta) is in nats per token.
    """

    length_average: bool = False

    def __call__(self, pairs: PairLogps) -> Tensor:
        """The loss of each pair, `(P,)`."""
        chosen, rejected = pairs.mean_log_ratios() if self.length_average else pairs.log_ratios()
        return (chosen - rejected - 1 / (2 * self.beta)).square()  # eq. 17

    def rewards(self, pairs: PairLogps) -> tuple[Tensor, Tensor]:
        """As `PreferenceLoss.rewards`, per token where `length_average` is on."""
        chosen, rejected = pairs.mean_log_ratios() if self.length_average else pairs.log_ratios()
        return self.beta * chosen.detach(), self.beta * rejected.detach()
