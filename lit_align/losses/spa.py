"""Spread Preference Annotation: a policy's judgement of its own responses, and learning from labels that may be wrong.

Kim et al. 2025 (2406.04412). With w the response that the judgement prefers, l the other one, D as in `preference`:

- the margin is m = beta D, the reference being the policy that the round began with;
- the extrapolated policy g has logits (1 + lambda) h - lambda h_ref at every position, h the policy's and h_ref the
  reference's, and its margin is m_g = beta [(log g(w) - log g(l)) - (log pi_ref(w) - log pi_ref(l))];
- a pair is noisy where m_g is at most a threshold, and its label is then smoothed by alpha.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from lit_align.errors import UserError


def preference_judgement(first: Tensor, second: Tensor, beta: float) -> Tensor:
    """Direct preference judgement: p(first over second) = sigmoid(beta (first - second)), equation 5.

    Args:
        first: log pi(y|x) / pi_SFT(y|x) of the first responses, summed over their tokens, nats, `(P,)`.
        second: The same of the second ones, `(P,)`.
        beta: Scale of the implicit reward. It says how sure the judgement is, never which way it goes.

    Returns:
        Probabilities, `(P,)`; a half is a tie.
    """
    return torch.sigmoid(beta * (first - second))


def extrapolate(logits: Tensor, ref_logits: Tensor, extrapolation: float) -> Tensor:
    """Logits of the extrapolated policy: (1 + lambda) h - lambda h_ref, float32, `(..., V)`.

    They have to be normalised over the vocabulary afterwards. Log-probabilities instead of logits would do as well, since they
    differ by a constant at each position; log-probabilities of single tokens do not suffice.

    Args:
        logits: Of the policy, `(..., V)`.
        ref_logits: Of the reference, `(..., V)`.
        extrapolation: lambda, how far beyond the policy; 0 is the policy.
    """
    return (1 + extrapolation) * logits.float() - extrapolation * ref_logits.float()


def refined_loss(margins: Tensor, is_noisy: Tensor, alpha: float) -> Tensor:
    """Self-refinement: -(1 - alpha z) log sigmoid(m) - alpha z log sigmoid(-m), equation 8.

    Args:
        margins: m, in units of the implicit reward, `(P,)`.
        is_noisy: z, boolean `(P,)`.
        alpha: How much of a noisy label goes to the other response; 0 is DPO.

    Returns:
        One value a pair, `(P,)`.
    """
    smoothed = alpha * is_noisy.to(margins.dtype)
    return -(1 - smoothed) * F.logsigmoid(margins) - smoothed * F.logsigmoid(-margins)


@dataclass(frozen=True)
class NoiseThreshold(ABC):
    """Up to which margin m_g a pair counts as noisy, from the margins of the round so far.

    What has been seen is the module's to keep, as a list of `(P,)` tensors: it is in checkpoints, and a round begins with none,
    because every margin is 0 then.
    """

    is_local: ClassVar[bool] = False
    """Whether each rank has its own, from its batches; else it is one, from the optimiser steps of all ranks."""

    @abstractmethod
    def __call__(self, seen: Sequence[Tensor]) -> float:
        """The threshold, in units of the implicit reward.

        Args:
            seen: Margins of each optimiser step of all ranks, or of each batch of this rank, none of them empty.
        """

    @abstractmethod
    def kept(self, seen: Sequence[Tensor]) -> list[Tensor]:
        """The last of `seen`, as many as any later threshold needs."""


@dataclass(frozen=True)
class GlobalWindow(NoiseThreshold):
    """A percentile of the last margins of all ranks: about that share of the pairs is noisy, whatever the batches are.

    The window is made of whole optimiser steps, the fewest last ones that hold so many pairs, so that ranks and accumulated
    batches make no difference. While a round has had fewer pairs, it is all of them; before its first step nothing is noisy.

    Args:
        percentile: K, in (0, 100): the threshold is the K-th percentile, interpolated linearly.
        window: Pairs; 320 is ten of the paper's optimiser steps.
    """

    percentile: float = 10.0
    window: int = 320

    def __post_init__(self) -> None:
        if not 0 < self.percentile < 100:
            raise UserError(f"percentile must lie between 0 and 100, got {self.percentile}; the paper's is 10.")
        if self.window < 1:
            raise UserError(f"window must be at least 1 pair, got {self.window}.")

    def __call__(self, seen: Sequence[Tensor]) -> float:
        """The percentile; minus infinity before there is a margin."""
        return float(torch.cat(list(seen)).double().quantile(self.percentile / 100)) if seen else -math.inf

    def kept(self, seen: Sequence[Tensor]) -> list[Tensor]:
        """The window."""
        kept, pairs = list(seen), sum(map(len, seen))
        while kept and pairs - len(kept[0]) >= self.window:
            pairs -= len(kept.pop(0))
        return kept


@dataclass(frozen=True)
class ReleasedThreshold(NoiseThreshold):
    """The threshold of the authors' released code, for comparison: each rank's own, from means over batches.

    (s[5] + s[6]) / 2, s the sorted mean margins of the rank's last 50 batches that had pairs; 0 until there are 50. Means
    spread less than margins, so how many pairs are noisy depends on the size of the batches.
    """

    is_local: ClassVar[bool] = True
    BATCHES: ClassVar[int] = 50

    def __call__(self, seen: Sequence[Tensor]) -> float:
        """Between the 6th and the 7th smallest of the 50 means."""
        if len(seen) < self.BATCHES:
            return 0.0
        means = sorted(float(margins.mean()) for margins in seen[-self.BATCHES :])
        return (means[5] + means[6]) / 2

    def kept(self, seen: Sequence[Tensor]) -> list[Tensor]:
        """The last 50 batches."""
        return list(seen[-self.BATCHES :])


@dataclass(frozen=True)
class SelfRefinement:
    """Which labels of a round are taken for noisy, and how far they are smoothed.

    Args:
        alpha: How much of a noisy label goes to the other response, in (0, 0.5].
        warmup: Share of a round's optimiser steps during which alpha is 0. Margins are collected meanwhile.
        lambdas: How far the policy is extrapolated to find noisy labels, one number for each round; 0 asks the policy itself,
            which is self-refinement without decoupled noise detection, and spares its cost.
        threshold: Up to which margin a pair is noisy.
    """

    alpha: float = 0.1
    warmup: float = 0.2
    lambdas: tuple[float, ...] = (1 / 2, 1 / 4, 1 / 8)
    threshold: NoiseThreshold = GlobalWindow()

    def __post_init__(self) -> None:
        if not 0 < self.alpha <= 0.5:
            raise UserError(
                f"refinement.alpha must lie in (0, 0.5], got {self.alpha}; for plain DPO set refinement: null."
            )
        if not 0 <= self.warmup < 1:
            raise UserError(f"refinement.warmup is a share of a round's steps in [0, 1), got {self.warmup}.")
        if any(not 0 <= extrapolation < math.inf for extrapolation in self.lambdas):
            raise UserError(f"refinement.lambdas must be 0 or positive numbers, got {list(self.lambdas)}.")

    def alpha_at(self, step: int, steps: int) -> float:
        """Alpha at a step of a round, counted from 0, of so many."""
        return 0.0 if step < self.warmup * steps else self.alpha
