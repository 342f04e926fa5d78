"""Who answers prompts: what `generate` asks for, and the policies of this process."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from lit_align.annotation.records import Row
from lit_align.errors import UserError
from lit_align.feedback import Answer, sample_answers
from lit_align.groups import Text
from lit_align.models import ModelConfig, load_policy, load_tokenizer
from lit_align.models.fingerprint import fingerprint
from lit_align.rollout import RolloutConfig


@dataclass(frozen=True)
class Plan:
    """What to sample, and how.

    Args:
        k: Responses to a prompt from each model.
        rollout: How they are sampled.
        seed: Of the random numbers.
    """

    k: int
    rollout: RolloutConfig
    seed: int

    def __post_init__(self) -> None:
        check_positive(k=self.k)

    def settings(self) -> Row:
        """As the file of settings has it."""
        sampling = self.rollout.sampling
        return {
            "k": self.k,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "top_k": sampling.top_k,
            "max_new_tokens": self.rollout.max_new_tokens,
            "seed": self.seed,
        }


class Sampler(ABC):
    """Several models, each of which answers every prompt.

    Args:
        models: Their names, each once.
        plan: How they answer.
    """

    beside: Sequence[Path] = ()
    """Files that are of no use any more once the file of responses is whole."""

    def __init__(self, models: Sequence[str], plan: Plan) -> None:
        if not models or len(set(models)) < len(models):
            raise UserError("Name one --model or several different ones; for more responses of one, raise k.")
        self.names = list(models)
        self.plan = plan

    @abstractmethod
    def answers(self, prompts: Sequence[Text], there: int) -> Iterator[tuple[list[list[Answer]], int]]:
        """Answers to all prompts but the first `there`, in their order, a few prompts at a time.

        Yields:
            For each prompt, K answers of the first model, then K of the second; and how many tokens were sampled for them.

        Raises:
            UserError: A prompt cannot be answered.
        """

    @abstractmethod
    def settings(self) -> Row:
        """All that decides what is answered."""


class LocalSampler(Sampler):
    """Policies in this process.

    Args:
        models: Their folders or hub names, each once.
        plan: How they answer.
        dtype: Of their weights.
        device: Where they run.
        max_prompt_length: Tokens of a prompt; a longer one loses its beginning.
        batch_size: Prompts sampled together. It decides which random numbers a prompt gets.
    """

    def __init__(
        self, models: Sequence[str], plan: Plan, dtype: Any, device: str, max_prompt_length: int, batch_size: int
    ) -> None:
        super().__init__(models, plan)
        check_positive(batch_size=batch_size, max_prompt_length=max_prompt_length)
        configs = [ModelConfig(path=path, dtype=dtype) for path in models]
        self.dtype = dtype
        self.device = device
        self.max_prompt_length = max_prompt_length
        self.batch_size = batch_size
        to = torch.device(device)
        self._policies = [(load_policy(config).eval().to(to), load_tokenizer(config)) for config in configs]

    def answers(self, prompts: Sequence[Text], there: int) -> Iterator[tuple[list[list[Answer]], int]]:
        """See `Sampler.answers`, chunk by chunk."""
        size = self.batch_size
        # A chunk of which only a part is there is sampled anew as a whole: a text depends on those sampled beside it.
        for chunk in range(there // size, -(-len(prompts) // size)):
            start = chunk * size
            rows = self._chunk(prompts[start : start + size], chunk)
            tokens = sum(len(answer.response_ids) for row in rows for answer in row)
            yield rows[max(there - start, 0) :], tokens

    def settings(self) -> Row:
        """See `Sampler.settings`. Models go by what they compute with, not by their names alone."""
        marks = [fingerprint(policy) for policy, _ in self._policies]
        return {
            "models": [{"path": path, "fingerprint": mark} for path, mark in zip(self.names, marks, strict=True)],
            "dtype": self.dtype,
            **self.plan.settings(),
            "max_prompt_length": self.max_prompt_length,
            "batch_size": self.batch_size,
            "device": self.device,
        }

    def _chunk(self, prompts: Sequence[Text], chunk: int) -> list[list[Answer]]:
        """The random numbers follow from seed, chunk and model alone, whatever was sampled before."""
        k, plan = self.plan.k, self.plan
        rows: list[list[Answer]] = [[] for _ in prompts]
        for number, (policy, tokenizer) in enumerate(self._policies):
            mixed = hashlib.sha256(f"{plan.seed}/{chunk}/{number}".encode()).digest()
            torch.manual_seed(int.from_bytes(mixed[:8], "big"))
            answers = sample_answers(policy, tokenizer, prompts, k, plan.rollout, self.max_prompt_length)
            for place, of_prompt in enumerate(rows):
                of_prompt.extend(answers[place * k : (place + 1) * k])
        return rows


def check_positive(**values: int) -> None:
    """Refuses what is below 1.

    Raises:
        UserError: Says which.
    """
    for name, value in values.items():
        if value < 1:
            raise UserError(f"{name} must be at least 1, got {value}.")
