"""Losses on pairs that look at the margin between two log-ratios: DPO, and what changes its link, labels or margin.

Written with h = log pi(y|x) / pi_ref(y|x), summed over response tokens, w the better response, l the worse one, and
D = h_w - h_l. What looks at each response by itself, or at the whole batch, is in `preference_absolute`; what needs no
reference, in `preference_free`.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch.nn.functional as F
from torch import Tensor

from lit_align.errors import UserError
from lit_align.losses.checks import require_flip_rate, require_positive


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

    def reference(self) -> tuple[Tensor, Tensor]:
        """`ref_chosen` and `ref_rejected`.

        Raises:
            ValueError: If they are None.
        """
        if self.ref_chosen is None or self.ref_rejected is None:
            raise ValueError(
                "This loss compares with a reference: needs_reference must be True, and PairLogps carry its log-probs."
            )
        return self.ref_chosen, self.ref_rejected

    def log_ratios(self) -> tuple[Tensor, Tensor]:
        """h_w and h_l: log pi / pi_ref of the better and of the worse responses, nats, `(P,)` each."""
        ref_chosen, ref_rejected = self.reference()
        return self.chosen - ref_chosen, self.rejected - ref_rejected

    def mean_log_ratios(self) -> tuple[Tensor, Tensor]:
        """h_w / |w| and h_l / |l|: log-ratios per token, nats, `(P,)` each."""
        chosen, rejected = self.log_ratios()
        return chosen / self.chosen_length, rejected / self.rejected_length

    def mean_logps(self) -> tuple[Tensor, Tensor]:
        """The policy's log-probabilities per token, log pi(w) / |w| and log pi(l) / |l|, nats, `(P,)` each."""
        return self.chosen / self.chosen_length, self.rejected / self.rejected_length

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

    def unscaled_rewards(self, pairs: PairLogps) -> tuple[Tensor, Tensor]:
        """What beta scales, of the better and of the worse responses, nats, `(P,)` each: h, unless a loss says otherwise."""
        return pairs.log_ratios()

    def rewards(self, pairs: PairLogps) -> tuple[Tensor, Tensor]:
        """Implicit rewards of the better and of the worse responses, for logging, `(P,)` each, without gradient."""
        chosen, rejected = self.unscaled_rewards(pairs)
        return self.beta * chosen.detach(), self.beta * rejected.detach()


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
class RobustDPO(PreferenceLoss):
    """Provably robust DPO: `(-(1 - e) log sigmoid(beta D) + e log sigmoid(-beta D)) / (1 - 2e)` (2403.00409).

    Over labels flipped at rate e its expectation is DPO's loss on clean labels. Unlike `CDPO` it has no finite best margin.

    Args:
        epsilon: Rate at which labels are flipped, in [0, 0.5); 0 is DPO.
    """

    epsilon: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        require_flip_rate(self.epsilon)

    def __call__(self, pairs: PairLogps) -> Tensor:
        """The loss of each pair, `(P,)`."""
        logits = self.beta * pairs.margin()
        unbiased = -(1 - self.epsilon) * F.logsigmoid(logits) + self.epsilon * F.logsigmoid(-logits)
        return unbiased / (1 - 2 * self.epsilon)


@dataclass(frozen=True)
class EXOPair(PreferenceLoss):
    """Efficient exact optimisation on pairs: `KL((q, 1 - q) || (1 - e, e))` with q = sigmoid(beta D) (2402.00856, eq. 16).

    The reverse of `CDPO`'s divergence, with the same best margin, beta D = log((1 - e) / e).

    Args:
        epsilon: Probability given to the worse response, in (0, 0.5): at 0 the divergence is infinite.
    """

    epsilon: float = 1e-3

    def __post_init__(self) -> None:
        super().__post_init__()
        require_positive("epsilon", self.epsilon)
        require_flip_rate(self.epsilon)

    def __call__(self, pairs: PairLogps) -> Tensor:
        """The loss of each pair, `(P,)`."""
        logits = self.beta * pairs.margin()
        chosen = logits.sigmoid() * (F.logsigmoid(logits) - math.log1p(-self.epsilon))
        rejected = (-logits).sigmoid() * (F.logsigmoid(-logits) - math.log(self.epsilon))
        return chosen + rejected  # eq. 16


@dataclass(frozen=True)
class IPO(PreferenceLoss):
    """Identity preference optimisation: `(D - 1 / (2 beta))^2` (2310.12036, eq. 17, with beta for its tau).

    Args:
        beta: Strength of the pull to the reference: the margin is drawn to 1 / (2 beta) nats. Positive.
        length_average: Divide each log-ratio by the tokens of its response, so that 1 / (2 beta) is in nats per token and
            one beta serves responses of any length. The paper's formula sums, which is off here; TRL averages, and reports
            that the paper's experiments did. A beta tuned for one is not a beta for the other.
    """

    length_average: bool = False

    def __call__(self, pairs: PairLogps) -> Tensor:
        """The loss of each pair, `(P,)`."""
        chosen, rejected = self.unscaled_rewards(pairs)
        return (chosen - rejected - 1 / (2 * self.beta)).square()  # eq. 17

    def unscaled_rewards(self, pairs: PairLogps) -> tuple[Tensor, Tensor]:
        """h, or h per token where `length_average` is on, `(P,)` each."""
        return pairs.mean_log_ratios() if self.length_average else pairs.log_ratios()


@dataclass(frozen=True)
class SigmoidNorm(PreferenceLoss):
    """DPO on log-ratios per token: `-log sigmoid(beta (h_w / |w| - h_l / |l|))`, TRL's `sigmoid_norm`.

    Args:
        beta: Scale of the implicit reward, here of nats per token: a value of `DPO` times a typical length. Positive.
    """

    def __call__(self, pairs: PairLogps) -> Tensor:
        """The loss of each pair, `(P,)`."""
        chosen, rejected = self.unscaled_rewards(pairs)
        return -F.logsigmoid(self.beta * (chosen - rejected))

    def unscaled_rewards(self, pairs: PairLogps) -> tuple[Tensor, Tensor]:
        """As `PreferenceLoss.unscaled_rewards`, per token."""
        return pairs.mean_log_ratios()


@dataclass(frozen=True)
class Hinge(PreferenceLoss):
    """`max(0, 1 - beta D)`: the hinge of SLiC-HF (2305.10425) on log-ratios to a reference, as in RSO (2309.06657)."""

    def __call__(self, pairs: PairLogps) -> Tensor:
        """The loss of each pair, `(P,)`."""
        return F.relu(1 - self.beta * pairs.margin())


@dataclass(frozen=True)
class RDPO(PreferenceLoss):
    """Length-regularised DPO: `-log sigmoid(beta D + alpha (|w| - |l|))` (2403.19159).

    The optimum of the reward less alpha a token: what length explains of a preference is not put into the policy, so a pair
    whose better response is the longer one teaches less.

    Args:
        alpha: Price of a response token, in units of the implicit reward. Positive.
    """

    alpha: float = 0.01

    def __post_init__(self) -> None:
        super().__post_init__()
        require_positive("alpha", self.alpha)

    def __call__(self, pairs: PairLogps) -> Tensor:
        """The loss of each pair, `(P,)`."""
        longer = pairs.chosen_length - pairs.rejected_length
        return -F.logsigmoid(self.beta * pairs.margin() + self.alpha * longer)


@dataclass(frozen=True)
class DPOP(PreferenceLoss):
    """DPO-Positive: `-log sigmoid(beta (D - penalty max(0, -h_w)))` (2402.13228).

    DPO is content when both responses become less likely, the worse one faster; here the better one may not.

    Args:
        penalty: Weight of each nat by which the better response is less likely than under the reference; lambda in the
            paper, which uses 50. Positive.
    """

    penalty: float = 50.0

    def __post_init__(self) -> None:
        super().__post_init__()
        require_positive("penalty", self.penalty)

    def __call__(self, pairs: PairLogps) -> Tensor:
        """The loss of each pair, `(P,)`."""
        chosen, rejected = pairs.log_ratios()
        return -F.logsigmoid(self.beta * (chosen - rejected - self.penalty * F.relu(-chosen)))


@dataclass(frozen=True)
class DiscoPOP(PreferenceLoss):
    """Log-ratio modulated loss, found by a language model: `-(1 - m) log sigmoid(z) + m exp(-z)` (2406.08414, eq. 5).

    Here z = beta D and m = sigmoid(z / tau). It is not convex: its slope at z = 0, where training starts, is
    (1 - ln 2) / (4 tau) - 3/4, so that below tau = 0.102 a pair is first driven to a slightly negative margin (z = -0.12 at
    the paper's 0.05).

    Args:
        tau: Width of the change from the logistic to the exponential loss, in (0, 1], in units of the implicit reward; the
            paper's is 0.05. Above 1 the exponential would win where z is very negative, and overflow.
    """

    tau: float = 0.05

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.tau <= 1:
            raise UserError(f"tau must lie in (0, 1], not {self.tau}.")

    def __call__(self, pairs: PairLogps) -> Tensor:
        """The loss of each pair, `(P,)`."""
        logits = self.beta * pairs.margin()
        modulation = logits / self.tau
        logistic = -(-modulation).sigmoid() * F.logsigmoid(logits)
        # m exp(-z) as one exponential: the factors by themselves are 0 and infinity where z is very negative.
        exponential = (F.logsigmoid(modulation) - logits).exp()
        return logistic + exponential  # eq. 5
