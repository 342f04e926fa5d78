"""Rewards that are computed from the text or the tokens of an answer."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from lit_align.errors import UserError
from lit_align.feedback.source import Answer, RewardSource, Scores, checked


@dataclass(frozen=True)
class FunctionReward(RewardSource):
    """A Python function of yours.

    Args:
        function: Its import path, such as `mine.my_reward` for the function `my_reward` in the file `mine.py` of the folder
            the run is started in. It takes a prompt (text, or a list of chat turns) and a response, and returns a number.
        batched: Whether it takes a list of prompts and one of responses instead, and returns as many numbers (a list, an
            array or a tensor).
    """

    function: Callable[..., Any]
    batched: bool = False

    def __call__(self, answers: Sequence[Answer]) -> Scores:
        """Calls the function, once for each answer or once for all.

        Raises:
            UserError: It returns something else than finite numbers, one for each answer.
        """
        name = getattr(self.function, "__qualname__", repr(self.function))
        if not self.batched:
            values: Any = [self.function(answer.prompt, answer.response) for answer in answers]
        else:
            values = self.function([a.prompt for a in answers], [a.response for a in answers]) if answers else []
        try:
            numbers = torch.as_tensor(values, dtype=torch.float32)
        except (TypeError, ValueError, RuntimeError) as error:
            wanted = "a list of numbers" if self.batched else "a number"
            raise UserError(f"The reward function {name} has to return {wanted}: {error}") from error
        return Scores(checked(numbers, answers, f"The reward function {name}"), {})


@dataclass(frozen=True)
class LengthReward(RewardSource):
    """0 for a response of up to `start` tokens, falling in a line to -1 at `limit`, and -1 beyond.

    It is the soft overlong punishment of DAPO (Yu et al. 2025, 2503.14476, section 3.4), with L_max = `limit` and
    L_cache = `limit - start`.

    Args:
        start: The longest response, in tokens of the policy and EOS included, that costs nothing.
        limit: From this length on a response costs 1. With `max_new_tokens`, every response that was cut does.
    """

    start: int
    limit: int

    def __post_init__(self) -> None:
        if not 0 <= self.start < self.limit:
            raise UserError(
                f"LengthReward: start ({self.start}) must be at least 0 and smaller than limit ({self.limit})."
            )

    def __call__(self, answers: Sequence[Answer]) -> Scores:
        """In [-1, 0]."""
        lengths = torch.tensor([len(answer.response_ids) for answer in answers], dtype=torch.float32)
        return Scores(((self.start - lengths) / (self.limit - self.start)).clamp(-1, 0), {})


@dataclass(frozen=True)
class FormatReward(RewardSource):
    """1 for a response that matches a regular expression as a whole, 0 for any other.

    Args:
        pattern: As Python's `re` takes it; `.` also matches a line break. For a pattern that may stand anywhere, put `.*`
            before and behind it.
    """

    pattern: str

    def __post_init__(self) -> None:
        try:
            re.compile(self.pattern, re.DOTALL)
        except re.error as error:
            raise UserError(f"FormatReward: {self.pattern!r} is no regular expression: {error}.") from error

    def __call__(self, answers: Sequence[Answer]) -> Scores:
        """0 or 1."""
        compiled = re.compile(self.pattern, re.DOTALL)
        matches = [compiled.fullmatch(answer.response) is not None for answer in answers]
        return Scores(torch.tensor(matches, dtype=torch.float32), {})


@dataclass(frozen=True)
class MissingEOSPenalty(RewardSource):
    """Minus `penalty` for a response that a length limit cut, 0 for one that the policy ended.

    As a part of a `WeightedSum` it is taken off whatever the other parts say. (Ziegler et al. 2019, 1909.08593, replace the
    whole score by -1 instead, so that the text of a response without an end does not matter at all.)

    Args:
        penalty: In units of the reward, more than 0.
    """

    penalty: float = 1.0

    def __post_init__(self) -> None:
        if not self.penalty > 0:
            raise UserError(
                f"MissingEOSPenalty: penalty must be more than 0, got {self.penalty}; it is taken off the reward."
            )

    def __call__(self, answers: Sequence[Answer]) -> Scores:
        """0 or minus the penalty."""
        penalties = [0.0 if answer.finished else -self.penalty for answer in answers]
        return Scores(torch.tensor(penalties, dtype=torch.float32), {})
