"""Who LLM judges ask: the interface of a language model in this process or behind a server."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple, TypeVar

import torch
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor

from lit_align.groups import Message

T = TypeVar("T")

PROGRESS_SECONDS = 10.0


class Reading(NamedTuple):
    """What a model said when it was to choose one of L labels, for each of Q questions.

    Args:
        logps: Log-probability of each label, nats, float32, on the CPU, `(Q, L)`. They need not add up to probability 1. Minus
            infinity throughout a row where no label could be made out.
        said: The text that no label could be made out of, for each question; empty where one could.
    """

    logps: Tensor
    said: list[str]


class TextModel(ABC):
    """A language model that is asked in text. A model of your own derives from this class.

    A question is a chat that ends with the user's turn. A model without a chat template reads `as_plain_text` of it. The same
    question gets the same answer however often it is asked, and asking leaves the global random generators alone.
    """

    @abstractmethod
    def label_logps(self, questions: Sequence[list[Message]], labels: Sequence[str]) -> Reading:
        """How likely each label is as the model's answer.

        Args:
            questions: Q chats; Q may be 0.
            labels: L texts, as `check_labels` passed them.

        Raises:
            UserError: A question cannot be asked.
        """

    @abstractmethod
    def complete(self, questions: Sequence[list[Message]], max_tokens: int) -> list[str]:
        """The model's most likely answer to each question, by greedy decoding.

        Args:
            questions: Q chats; Q may be 0.
            max_tokens: An answer is cut after so many tokens of the model.

        Raises:
            UserError: A question cannot be asked.
        """

    def check_labels(self, labels: Sequence[str]) -> None:  # noqa: B027  most models can tell any labels apart
        """Refuses labels that this model cannot tell apart.

        Raises:
            UserError: Says what to change.
        """

    def to(self, device: torch.device | str) -> None:  # noqa: B027  a model behind a server computes where it is
        """Where the model, if it is in this process, is to compute from now on."""


def as_plain_text(question: Sequence[Message]) -> str:
    """A question for models that know no chats: its turns with an empty line between them. A label follows behind a space."""
    return "\n\n".join(turn["content"] for turn in question)


def with_progress(done: Iterable[T], total: int, what: str) -> Iterator[T]:
    """Passes on what is done, with a line in the log now and then where it takes long."""
    last = time.monotonic()
    for number, one in enumerate(done, start=1):
        yield one
        if time.monotonic() - last > PROGRESS_SECONDS:
            last = time.monotonic()
            rank_zero_info(f"{what}: {number:,} of {total:,}")
