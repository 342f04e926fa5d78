"""Losses on pairs that need no reference model. Notation as in `preference`, with log pi summed over response tokens."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from lit_align.losses.checks import require_not_negative
from lit_align.losses.preference import PairLogps, PreferenceLoss


@dataclass(frozen=True)
class SimPO(PreferenceLoss):
    """Simple preference optimisation: `-log sigmoid(beta log pi(w) / |w| - beta log pi(l) / |l| - gamma)` (2405.14734, eq. 6).

    Args:
        beta: Scale of the reward, which is beta times the mean log-probability of a token. Positive.
        gamma: Margin by which the better response should win, in units of the reward; what others call the
            gamma-beta ratio is gamma / beta. Not negative.
    """

    beta: float = 2.0
    gamma: float = 1.0

    needs_reference: ClassVar[bool] = False

    def __post_init__(self) -> None:
        super().__post_init__()
        require_not_negative("gamma", self.gamma)

    def __call__(self, pairs: PairLogps) -> Tensor:
        """The loss of each pair, `(P,)`."""
        chosen, rejected = self.unscaled_rewards(pairs)
        return -F.logsigmoid(self.beta * (chosen - rejected) - self.gamma)  # eq. 6

    def unscaled_rewards(self, pairs: PairLogps) -> tuple[Tensor, Tensor]:
        """The log-probabilities per token, `(P,)` each."""
        return pairs.mean_logps()


@dataclass(frozen=True)
class CPO(PreferenceLoss):
    """Contrastive preference optimisation: `-log sigmoid(beta (log pi(w) - log pi(l))) + nll_weight NLL(w)` (2401.08417).

    NLL(w) is the mean over the tokens of the better response. The paper writes the sum; the authors' code takes a mean, which
    keeps the two terms on one scale whatever the length.

    Args:
        beta: Scale of the reward, which is beta times the summed log-probability. Positive.
        nll_weight: Weight of the negative log-likelihood that keeps the policy at the better responses. Not negative.
    """

    nll_weight: float = 1.0

    needs_reference: ClassVar[bool] = False

    def __post_init__(self) -> None:
        super().__post_init__()
        require_not_negative("nll_weight", self.nll_weight)

    def __call__(self, pairs: PairLogps) -> Tensor:
        """The loss of each pair, `(P,)`."""
        nll = -pairs.chosen / pairs.chosen_length
        return -F.logsigmoid(self.beta * (pairs.chosen - pairs.rejected)) + self.nll_weight * nll

    def unscaled_rewards(self, pairs: PairLogps) -> tuple[Tensor, Tensor]:
        """The summed log-probabilities, `(P,)` each."""
        return pairs.chosen, pairs.rejected


@dataclass(frozen=True)
class ORPO(PreferenceLoss):
    """Odds-ratio preference optimisation: `NLL(w) - beta log sigmoid(log odds(w) - log odds(l))` (2403.07691, eq. 6 and 7).

    With p = exp(log pi(y) / |y|), the geometric mean over tokens, odds = p / (1 - p) and NLL(w) = -log p(w).
    It takes the place of SFT: start from a base model. Certainty (p = 1) is taken as float32's epsilon less, for finite odds.

    Args:
        beta: Weight of the odds-ratio term, lambda in the paper. Positive.
    """

    needs_reference: ClassVar[bool] = False

    def __call__(self, pairs: PairLogps) -> Tensor:
        """The loss of each pair, `(P,)`."""
        chosen, rejected = self.unscaled_rewards(pairs)
        return -chosen - self.beta * F.logsigmoid(_log_odds(chosen) - _log_odds(rejected))  # eq. 6

    def unscaled_rewards(self, pairs: PairLogps) -> tuple[Tensor, Tensor]:
        """The log-probabilities per token, `(P,)` each."""
        return pairs.mean_logps()


def _log_odds(logps: Tensor) -> Tensor:
    # A response the policy is certain of has log-probability 0 in float32, and infinite odds.
    logps = logps.clamp(max=-torch.finfo(torch.float32).eps)
    return logps - torch.log(-torch.expm1(logps))
