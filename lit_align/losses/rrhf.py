"""RRHF: responses to one prompt are ranked by their log-probability per token, and the best one is imitated.

Written as in Yuan et al. 2023 (2304.05302): r_i is what is known of response i, p_i the score that the policy gives it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from lit_align.groups import preferred_pairs
from lit_align.losses.checks import require_not_negative


class RankedLogps(NamedTuple):
    """What is known of N responses to G prompts.

    Args:
        logps: Log-probability of each response under the policy, summed over its tokens, nats, `(N,)`.
        lengths: Its tokens, EOS included, `(N,)`.
        scores: r, higher is better, comparable within a group only, `(N,)`.
        group_index: The group each response belongs to, in `[0, G)`, sorted, `(N,)`.
        widths: Tokens of each prompt and its longest response together, `(G,)`.
    """

    logps: Tensor
    lengths: Tensor
    scores: Tensor
    group_index: Tensor
    widths: Tensor

    def best(self) -> Tensor:
        """Index of the response with the highest score of each group, the first of those that tie, `(G,)`."""
        highest = self.scores.new_full(self.widths.shape, float("-inf"))
        highest = highest.scatter_reduce(0, self.group_index, self.scores, "amax")
        places = torch.arange(len(self.scores), device=self.scores.device)
        candidates = places.masked_fill(self.scores < highest[self.group_index], len(places))
        return candidates.new_full(self.widths.shape, len(places)).scatter_reduce(
            0, self.group_index, candidates, "amin"
        )


class RankingTerms(NamedTuple):
    """What a ranking loss makes of N responses in G groups.

    Args:
        losses: What is minimised, `(G,)`.
        rank: L_rank, before its weight, `(G,)`.
        sft: L_ft, `(G,)`.
        p: The policy's score of each response, nats a token, `(N,)`.
    """

    losses: Tensor
    rank: Tensor
    sft: Tensor
    p: Tensor


@dataclass(frozen=True)
class RankingLoss(ABC):
    """What `RRHF` minimises: `rank_weight * L_rank + L_ft`. A loss of your own is a frozen dataclass that derives from this.

    Args:
        rank_weight: Weight of L_rank. The paper has 1, and found 10 and 100 to be worse. Not negative; 0 leaves supervised
            fine-tuning on the best responses.
    """

    rank_weight: float = 1.0

    def __post_init__(self) -> None:
        require_not_negative("rank_weight", self.rank_weight)

    @abstractmethod
    def policy_scores(self, ranked: RankedLogps) -> Tensor:
        """p, what the policy ranks the responses by, `(N,)`."""

    @abstractmethod
    def sft_losses(self, ranked: RankedLogps) -> Tensor:
        """L_ft of each group's best response, `(G,)`."""

    def __call__(self, ranked: RankedLogps) -> RankingTerms:
        """One value a group, `(G,)`. The module averages over all groups of an optimiser step, on all ranks."""
        p, sft = self.policy_scores(ranked), self.sft_losses(ranked)
        better, worse = preferred_pairs(ranked.scores, ranked.group_index)
        hinges = F.relu(p[worse] - p[better])  # a tie is no pair
        rank = p.new_zeros(len(sft)).index_add(0, ranked.group_index[better], hinges)
        return RankingTerms(self.rank_weight * rank + sft, rank, sft, p)


@dataclass(frozen=True)
class RRHF(RankingLoss):
    """The paper's loss: `w sum over r_i < r_j of max(0, p_i - p_j) - log pi(y_best)` (2304.05302, section 3).

    p is the log-probability of a response divided by its number of tokens; L_ft is a sum over tokens. There is no margin, and
    no reference: a group that the policy orders rightly costs L_ft alone.
    """

    def policy_scores(self, ranked: RankedLogps) -> Tensor:
        """P = log pi(y) / |y|, `(N,)`."""
        return ranked.logps / ranked.lengths

    def sft_losses(self, ranked: RankedLogps) -> Tensor:
        """-log pi(y_best), nats, `(G,)`."""
        return -ranked.logps[ranked.best()]


@dataclass(frozen=True)
class RRHFReleased(RankingLoss):
    """The loss as the paper's authors released it, for runs that are compared with theirs.

    Their code overwrites the mask of the response tokens before it counts them, and takes a mean where the paper has a sum, so
    both terms are divided by the padded width of the query's candidates: tokens of the prompt and the longest response. In
    effect lengths are not normalised, and a longer prompt teaches less. Their code defaults to a `rank_weight` of 100 and
    their scripts set 1, which is the default here. It trains on one query at a time; here each query of a batch has its own
    width.
    """

    def policy_scores(self, ranked: RankedLogps) -> Tensor:
        """Log pi(y) / width, `(N,)`."""
        return ranked.logps / ranked.widths[ranked.group_index]

    def sft_losses(self, ranked: RankedLogps) -> Tensor:
        """-log pi(y_best) / width, `(G,)`."""
        return -ranked.logps[ranked.best()] / ranked.widths
