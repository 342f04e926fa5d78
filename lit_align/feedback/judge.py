"""What compares responses: the interface that every judge implements, and the judge that a reward source makes."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from lit_align.errors import UserError
from lit_align.feedback.source import Answer, RewardSource


class Judge(ABC):
    """Says which of two answers to one prompt is the better one. A judge of your own derives from this class.

    The same answers get the same verdict however often they are shown, so callbacks may call this whenever they like.
    """

    @abstractmethod
    def __call__(self, first: Sequence[Answer], second: Sequence[Answer]) -> Tensor:
        """Probability that each first answer is better than the second one, float32 on the CPU, `(P,)`; a half is a tie.

        Args:
            first: P answers; P may be 0.
            second: Other answers to the same P prompts.

        Raises:
            UserError: An answer cannot be judged.
        """

    def by_order(self, first: Sequence[Answer], second: Sequence[Answer]) -> Tensor:
        """The same probability when the first answer is shown first, and when it is shown second, `(P, 2)`.

        The two differ for judges that read both answers in one text. Others have no order to show them in.
        """
        verdict = self(first, second)
        return torch.stack([verdict, verdict], dim=1)

    def to(self, device: torch.device | str) -> None:  # noqa: B027  most judges have no model, so nothing to move
        """Where models of this judge, if it has any, are to compute from now on."""

    def attach(self, policy: Any) -> None:  # noqa: B027  most judges only read answers
        """Shows the judge the policy, once it is built, for judges that compute with its weights.

        Raises:
            UserError: The judge cannot compute with this policy.
        """


class RewardJudge(Judge):
    """Prefers the answer with the higher reward, by a Bradley-Terry model: sigmoid(scale * (reward - other reward)).

    Args:
        reward: What scores answers: the gold score of an embedded task, a reward model, a function.
        scale: What the difference of two rewards is multiplied with. The verdict is the same for every scale, how sure it is
            is not.
    """

    def __init__(self, reward: RewardSource, scale: float = 1.0) -> None:
        if not scale > 0:
            raise UserError(f"RewardJudge: scale must be above 0, got {scale}.")
        self.reward = reward
        self.scale = scale

    def __call__(self, first: Sequence[Answer], second: Sequence[Answer]) -> Tensor:
        """As the rewards say; equal rewards tie.

        Raises:
            UserError: An answer cannot be scored.
        """
        rewards = self.reward([*first, *second]).total
        return torch.sigmoid(self.scale * (rewards[: len(first)] - rewards[len(first) :]))

    def to(self, device: torch.device | str) -> None:
        """Moves the reward's models."""
        self.reward.to(device)

    def attach(self, policy: Any) -> None:
        """Shows the reward the policy."""
        self.reward.attach(policy)
