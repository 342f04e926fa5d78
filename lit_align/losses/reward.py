"""Losses of reward models: one value for every group of responses to one prompt.

A prompt is one element of the batch whatever its number of responses K, as in InstructGPT: spreading its C(K, 2)
comparisons over the data set as elements of their own lets a reward model overfit within one epoch (2203.02155, section 3.5).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from lit_align.errors import UserError
from lit_align.groups import preferred_pairs


@dataclass(frozen=True)
class RewardLoss(ABC):
    """What `RewardModel` minimises. A loss of your own is a frozen dataclass that derives from this class."""

    needs_labels: ClassVar[bool] = False
    """Whether it learns from rows with labels, desirable or not, and not from rows with scores."""

    @abstractmethod
    def __call__(self, rewards: Tensor, scores: Tensor, group_index: Tensor, margins: Tensor) -> Tensor:
        """One value for every group there is something to learn from, in the order of the groups.

        Args:
            rewards: What the model gives each response, `(N,)`, float32.
            scores: What is known of each response, higher is better, `(N,)`; of labelled ones 1 (desirable) or 0.
            group_index: The group each response belongs to, in `[0, G)`, sorted, `(N,)`.
            margins: By how much the better response should win, in units of the reward, one a group, `(G,)`.

        Returns:
            `(G',)` with G' <= G: a loss that compares leaves out the groups whose scores are all tied.

        Raises:
            UserError: If the loss cannot use the groups it was given, or would ignore a margin.
        """


@dataclass(frozen=True)
class KWise(RewardLoss):
    """All pairs of a prompt: `-1 / C(K, 2) sum over pairs log sigmoid(r_w - r_l - margin)` (2203.02155, eq. 1).

    K may differ from group to group and counts all responses of the group. Tied pairs are dropped, and the weight stays
    1 / C(K, 2): a prompt with ties teaches less. At K = 2 this is `BradleyTerry`. A margin holds for every pair of its group.
    """

    def __call__(self, rewards: Tensor, scores: Tensor, group_index: Tensor, margins: Tensor) -> Tensor:
        """The loss of each group that counts, `(G',)`."""
        n_groups = len(margins)
        pairs = preferred_pairs(scores, group_index)
        group_of_pair = group_index[pairs.chosen]
        gaps = rewards[pairs.chosen] - rewards[pairs.rejected] - margins[group_of_pair]
        k = torch.bincount(group_index, minlength=n_groups)[group_of_pair]
        losses = -F.logsigmoid(gaps) * 2 / (k * (k - 1))  # eq. 1
        untied = torch.bincount(group_of_pair, minlength=n_groups) > 0
        return rewards.new_zeros(n_groups).index_add(0, group_of_pair, losses)[untied]


@dataclass(frozen=True)
class BradleyTerry(RewardLoss):
    """One pair a prompt: `-log sigmoid(r_w - r_l - margin)`, the margin as in Llama 2 (2307.09288, eq. 2).

    A tied pair is left out; a group with K other than 2 is refused.
    """

    def __call__(self, rewards: Tensor, scores: Tensor, group_index: Tensor, margins: Tensor) -> Tensor:
        """The loss of each group that counts, `(G',)`."""
        k = torch.bincount(group_index, minlength=len(margins))
        if (k != 2).any():
            raise UserError(
                f"BradleyTerry compares two responses a prompt, and one prompt has {k[k != 2][0].item()}. "
                "Use KWise or PlackettLuce for rankings."
            )
        pairs = preferred_pairs(scores, group_index)
        # Pairs come in the order of the better response, and group_index is sorted, so they are in the order of the groups.
        return -F.logsigmoid(rewards[pairs.chosen] - rewards[pairs.rejected] - margins[group_index[pairs.chosen]])


def _refuse_margins(margins: Tensor, name: str) -> None:
    if margins.any():
        raise UserError(
            f"{name} has no margin, but rows carry one. Remove the margins from the rows, or use BradleyTerry or KWise."
        )


@dataclass(frozen=True)
class PlackettLuce(RewardLoss):
    """Likelihood of the whole ranking: `-sum_k log(exp r_k / sum_{j at or below k} exp r_j)` (2305.18290, eq. 18).

    Ties: tied responses are not compared with each other. The denominator of a response holds itself and the strictly worse
    ones, so a fully tied group is left out, and at K = 2 this is `BradleyTerry`. The sum is not divided by K: it is the
    log-likelihood. Refuses margins.
    """

    def __call__(self, rewards: Tensor, scores: Tensor, group_index: Tensor, margins: Tensor) -> Tensor:
        """The loss of each group that counts, `(G',)`."""
        _refuse_margins(margins, "PlackettLuce")
        same_group = group_index[:, None] == group_index[None, :]
        worse = same_group & (scores[None, :] < scores[:, None])
        remaining = worse | torch.eye(len(rewards), dtype=torch.bool, device=rewards.device)
        # Differences before the logsumexp: rewards far from zero lose no digits, and a response without rivals gives exactly 0.
        gaps = (rewards[None, :] - rewards[:, None]).masked_fill(~remaining, -torch.inf)
        losses = gaps.logsumexp(dim=1)
        untied = torch.zeros_like(margins, dtype=torch.bool).index_fill(0, group_index[worse.any(dim=1)], True)
        return rewards.new_zeros(len(margins)).index_add(0, group_index, losses)[untied]


@dataclass(frozen=True)
class Regression(RewardLoss):
    """Squared error to the scores, averaged over the responses of a prompt: `1/K sum_k (r_k - score_k)^2`.

    The scores must be on one scale over all prompts, and ties are data like any other: every group gives a value, at any K.
    Refuses margins.
    """

    def __call__(self, rewards: Tensor, scores: Tensor, group_index: Tensor, margins: Tensor) -> Tensor:
        """The loss of each group that counts, `(G',)`."""
        _refuse_margins(margins, "Regression")
        k = torch.bincount(group_index, minlength=len(margins))
        return rewards.new_zeros(len(margins)).index_add(0, group_index, (rewards - scores).square()) / k


@dataclass(frozen=True)
class BinaryCritique(RewardLoss):
    """Cross-entropy of labels, desirable or not: `-log sigmoid(r)` or `-log sigmoid(-r)`, the mean over a prompt's responses.

    For critiques, which judge a response by itself (the taxonomy of 2312.14925). So the reward has a zero of its own: it is
    the logit of a response being called desirable. Refuses margins.
    """

    needs_labels: ClassVar[bool] = True

    def __call__(self, rewards: Tensor, scores: Tensor, group_index: Tensor, margins: Tensor) -> Tensor:
        """The loss of each group, `(G,)`."""
        _refuse_margins(margins, "BinaryCritique")
        losses = F.binary_cross_entropy_with_logits(rewards, scores, reduction="none")
        k = torch.bincount(group_index, minlength=len(margins))
        return rewards.new_zeros(len(margins)).index_add(0, group_index, losses) / k
