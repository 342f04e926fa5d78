"""Losses on pairs that look at each response by itself, or at the whole batch, rather than at one margin.

DPO only asks that the better response gain on the worse one, and both may become less likely. The pointwise losses here say
where each of them should go. Notation as in `preference`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from lit_align.losses.preference import PairLogps, PreferenceLoss


@dataclass(frozen=True)
class NCAPair(PreferenceLoss):
    """Noise contrastive alignment on pairs (2402.05369).

    `-log sigmoid(beta h_w) - 1/2 log sigmoid(-beta h_w) - 1/2 log sigmoid(-beta h_l)`: the first term raises the better
    response; the others, equal for both, hold likelihoods to the reference.
    """

    def __call__(self, pairs: PairLogps) -> Tensor:
        """The loss of each pair, `(P,)`."""
        chosen, rejected = pairs.log_ratios()
        noise = F.logsigmoid(-self.beta * chosen) + F.logsigmoid(-self.beta * rejected)
        return -F.logsigmoid(self.beta * chosen) - noise / 2


@dataclass(frozen=True)
class BCOPair(PreferenceLoss):
    """Binary classifier optimisation on pairs: `-log sigmoid(beta h_w - s) - log sigmoid(-(beta h_l - s))` (2404.04656).

    The classifier tells better responses from worse ones, and its loss bounds DPO's from above.

    Args:
        reward_shift: Take for s the mean of all rewards beta h of the call, without gradient, which tightens the bound; off,
            s = 0, as in TRL's `bco_pair`. The paper keeps a running mean over steps; here a loss has no state. The
            mean is one micro-batch's on one rank, so accumulated batches are not the same as one large batch, and at one
            pair a micro-batch the loss is twice DPO's at beta / 2.
    """

    reward_shift: bool = False

    def __call__(self, pairs: PairLogps) -> Tensor:
        """The loss of each pair, `(P,)`."""
        chosen, rejected = pairs.log_ratios()
        if self.reward_shift:
            shift = torch.cat([chosen, rejected]).mean().detach()
            chosen, rejected = chosen - shift, rejected - shift
        return -F.logsigmoid(self.beta * chosen) - F.logsigmoid(-self.beta * rejected)


@dataclass(frozen=True)
class SPPOHard(PreferenceLoss):
    """Self-play preference optimisation with hard labels: `(h_w - 1/(2 beta))^2 + (h_l + 1/(2 beta))^2` (2405.00675).

    Its equation 4.7 with probability 1 of winning for the better response and 0 for the worse, the two squares added.

    Args:
        beta: 1 / eta of the paper, which uses 0.001: each log-ratio is drawn to 1 / (2 beta) nats from 0. Positive.
    """

    def __call__(self, pairs: PairLogps) -> Tensor:
        """The loss of each pair, `(P,)`."""
        chosen, rejected = pairs.log_ratios()
        return (chosen - 1 / (2 * self.beta)).square() + (rejected + 1 / (2 * self.beta)).square()


@dataclass(frozen=True)
class APOZero(PreferenceLoss):
    """Anchored preference optimisation, zero: `1 - sigmoid(beta h_w) + sigmoid(beta h_l)` (2408.06266, eq. 7).

    Raises the better response and lowers the worse: for data whose better responses are better than the policy's own.
    """

    def __call__(self, pairs: PairLogps) -> Tensor:
        """The loss of each pair, `(P,)`."""
        chosen, rejected = pairs.log_ratios()
        return (-self.beta * chosen).sigmoid() + (self.beta * rejected).sigmoid()


@dataclass(frozen=True)
class APODown(PreferenceLoss):
    """Anchored preference optimisation, down: `sigmoid(beta h_w) + 1 - sigmoid(beta D)` (2408.06266, eq. 8).

    Lowers both responses, the worse one more: for data whose better responses are worse than the policy's own.
    """

    def __call__(self, pairs: PairLogps) -> Tensor:
        """The loss of each pair, `(P,)`."""
        chosen, _ = pairs.log_ratios()
        return (self.beta * chosen).sigmoid() + (-self.beta * pairs.margin()).sigmoid()


@dataclass(frozen=True)
class AOT(PreferenceLoss):
    """Alignment via optimal transport, paired (2406.05882): DPO's loss between quantiles of the batch.

    With m = log pi(w) - log pi(l) under the policy, m_ref under the reference, both sorted over the batch:
    `-log sigmoid(beta (m_(i) - m_ref_(i)))`. The margins of the policy come to dominate those of the reference as a
    distribution. Value i belongs to the i-th quantile, not to pair i.

    The sort runs over the pairs of one call: one micro-batch on one rank. Accumulated batches are therefore not the same as
    one large batch, and at one pair a micro-batch this is DPO.
    """

    def __call__(self, pairs: PairLogps) -> Tensor:
        """The loss of each quantile, from the lowest, `(P,)`."""
        ref_chosen, ref_rejected = pairs.reference()
        policy, reference = pairs.chosen - pairs.rejected, ref_chosen - ref_rejected
        return -F.logsigmoid(self.beta * (policy.sort().values - reference.sort().values))


@dataclass(frozen=True)
class AOTUnpaired(PreferenceLoss):
    """Alignment via optimal transport, unpaired (2406.05882): who was compared with whom does not matter.

    With the log-ratios h_w and h_l each sorted over the batch: `-log sigmoid(beta (h_w_(i) - h_l_(i)))`. Better responses come
    to dominate the worse ones as a distribution. Value i belongs to the i-th quantile, not to pair i.

    What `AOT` says of accumulation holds here too.
    """

    def __call__(self, pairs: PairLogps) -> Tensor:
        """The loss of each quantile, from the lowest, `(P,)`."""
        chosen, rejected = pairs.log_ratios()
        return -F.logsigmoid(self.beta * (chosen.sort().values - rejected.sort().values))
