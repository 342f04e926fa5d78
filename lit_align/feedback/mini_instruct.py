"""Rewards of the embedded task: the gold score, and a proxy that goes wrong in a known way."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import torch
from torch import Tensor

from lit_align.data.mini_instruct import MAX_WORDS, PROMPTS, WORDS, gold, groups
from lit_align.errors import UserError
from lit_align.exact.enumeration import word_table
from lit_align.feedback.source import Answer, RewardSource, Scores

NEWTON_STEPS = 20
RIDGE = 1e-3
"""Keeps the weights finite where few pairs tell two words apart; per pair it is far below what the data say."""


class MiniInstructGold(RewardSource):
    """The gold score of `mini_instruct`: what a policy should raise, and what no learner would know outside of this task."""

    def __call__(self, answers: Sequence[Answer]) -> Scores:
        """Gold scores.

        Raises:
            UserError: A prompt is none of the task's.
        """
        values = [gold(str(answer.prompt), answer.response) for answer in answers]
        return Scores(torch.tensor(values, dtype=torch.float32), {})


class LinearProxy(RewardSource):
    """A reward for `mini_instruct` that is misspecified on purpose: for each prompt, linear in how often each word occurs.

    It cannot know that a second on-topic noun, a third positive word or a fourth word of any kind is worth nothing or less.
    Fitted to preferences by logistic regression (Bradley-Terry), it orders close to nine tenths of the data's pairs as gold
    does, and a policy that follows it far enough loses gold: the case of over-optimisation (Gao et al. 2022, 2210.10760).

    It is fitted when it is first used, in about a second, and is the same for the same arguments.

    Args:
        pairs: Preferences of `mini_instruct` that it is fitted to.
        seed: Of these preferences.
    """

    def __init__(self, pairs: int = 10_000, seed: int = 0) -> None:
        if pairs < 1:
            raise UserError(f"LinearProxy: pairs must be at least 1, got {pairs}.")
        self.pairs = pairs
        self.seed = seed

    def __call__(self, answers: Sequence[Answer]) -> Scores:
        """Words times weights; a word that is none of the task's counts nothing.

        Raises:
            UserError: A prompt is none of the task's.
        """
        values = [_counts(a.response) @ self.weights[_number(str(a.prompt))] for a in answers]
        return Scores(torch.tensor(values, dtype=torch.float32), {})

    def table(self) -> Tensor:
        """The proxy of every response to every prompt, `(8, 54240)` float64, as `lit_align.data.mini_instruct.gold_scores`."""
        words = word_table(len(WORDS), MAX_WORDS)
        counts = torch.stack([(words == word).sum(1) for word in range(len(WORDS))])
        return self.weights @ counts.double()

    @cached_property
    def weights(self) -> Tensor:
        """What one occurrence of a word is worth in the response to a prompt, `(8, 15)` float64."""
        gaps: list[list[Tensor]] = [[torch.zeros(len(WORDS), dtype=torch.float64)] for _ in PROMPTS]
        for group in groups("preference", self.pairs, self.seed):
            chosen, rejected = map(_counts, group.responses)
            gaps[_number(str(group.prompt))].append(chosen - rejected)
        return torch.stack([_logistic_regression(torch.stack(of_prompt)) for of_prompt in gaps])


def _number(prompt: str) -> int:
    """The row of a prompt in the tables of the task."""
    if prompt not in PROMPTS:
        raise UserError(f"LinearProxy: {prompt!r} is no prompt of mini_instruct.")
    return PROMPTS.index(prompt)


def _counts(response: str) -> Tensor:
    """How often each word of the task occurs, `(15,)` float64."""
    words = response.split()
    return torch.tensor([words.count(word) for word in WORDS], dtype=torch.float64)


def _logistic_regression(gaps: Tensor) -> Tensor:
    """Weights w that maximise sum log sigmoid(gaps @ w) - RIDGE / 2 |w|^2, by Newton's method; `(P, D)` to `(D,)`."""
    ridge = RIDGE * torch.eye(gaps.shape[1], dtype=gaps.dtype)
    weights = gaps.new_zeros(gaps.shape[1])
    for _ in range(NEWTON_STEPS):
        lost = (-(gaps @ weights)).sigmoid()
        gradient = gaps.T @ lost - ridge @ weights
        curvature = (gaps.T * (lost * (1 - lost))) @ gaps + ridge
        weights = weights + torch.linalg.solve(curvature, gradient)
    return weights
