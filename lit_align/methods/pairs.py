"""What the methods share that learn from pairs: log-probabilities of a pair, and what is logged of it."""

from __future__ import annotations

import torch
from torch import Tensor

from lit_align.groups import GroupBatch, preferred_pairs
from lit_align.losses import PairLogps, PreferenceLoss


def paired(batch: GroupBatch, policy: Tensor, reference: Tensor | None) -> PairLogps:
    """Every pair of responses of one group whose scores differ, with what policy and reference say of both.

    Args:
        batch: N responses with scores.
        policy: Their summed log-probabilities, nats, `(N,)`.
        reference: The same under the reference, or None without one.
    """
    assert batch.scores is not None
    chosen, rejected = preferred_pairs(batch.scores, batch.group_index)
    lengths = batch.response_lengths
    return PairLogps(
        chosen=policy[chosen],
        rejected=policy[rejected],
        ref_chosen=None if reference is None else reference[chosen],
        ref_rejected=None if reference is None else reference[rejected],
        chosen_length=lengths[chosen],
        rejected_length=lengths[rejected],
    )


@torch.no_grad()
def pair_metrics(loss: PreferenceLoss, pairs: PairLogps) -> dict[str, Tensor]:
    """Implicit rewards of P pairs as a loss defines them, their order, and the log-probabilities, each `(P,)`."""
    chosen, rejected = loss.rewards(pairs)
    margin = chosen - rejected
    return {
        "rewards/chosen": chosen,
        "rewards/rejected": rejected,
        "rewards/margin": margin,
        "rewards/accuracy": (margin.sign() + 1) / 2,
        "logps/chosen": pairs.chosen,
        "logps/rejected": pairs.rejected,
    }
