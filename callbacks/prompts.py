"""The fixed prompts that a callback samples responses to, shared out over ranks."""

from __future__ import annotations

import json
from functools import cached_property
from typing import Any

import torch
from lightning.pytorch import Trainer
from torch import Tensor

from lit_align.data.mini_instruct import PROMPTS
from lit_align.data.prompts import PromptCounts, read_prompts
from lit_align.errors import UserError
from lit_align.feedback import Answer, sample_answers
from lit_align.groups import Text
from lit_align.rollout import RolloutConfig
from lit_align.runtime import gather_per_rank

EMBEDDED = "mini_instruct"


class PromptSet:
    """X prompts with K samples each, the same prompts at every measurement.

    Rank r of R has the prompts r, r + R, r + 2R, ...; where there are fewer prompts than ranks, some have none.

    Args:
        name: Where the prompts are read: as `PromptData.train`. They should be prompts that are not trained on.
        n_prompts: The first so many, repeated ones not counted.
        k: Responses to each prompt.
        rollout: How responses are sampled.
        max_prompt_length: Tokens of a prompt; a longer one loses its beginning.
    """

    def __init__(self, name: str, n_prompts: int, k: int, rollout: RolloutConfig, max_prompt_length: int) -> None:
        for what, value in {"n_prompts": n_prompts, "k": k, "max_prompt_length": max_prompt_length}.items():
            if value < 1:
                raise UserError(f"{what} must be at least 1, got {value}.")
        self.name = name
        self.n_prompts = n_prompts
        self.k = k
        self.rollout = rollout
        self.max_prompt_length = max_prompt_length

    @cached_property
    def texts(self) -> list[Text]:
        """The prompts, read when they are first asked for.

        Raises:
            UserError: There are none, or a row has none.
        """
        if self.name == EMBEDDED:
            return list(PROMPTS[: self.n_prompts])
        distinct: dict[str, Text] = {}
        for group in read_prompts(self.name, PromptCounts("raise")):
            if len(distinct) == self.n_prompts:
                break
            distinct.setdefault(json.dumps(group.prompt), group.prompt)
        if not distinct:
            raise UserError(f"{self.name} holds no prompts.")
        return list(distinct.values())

    def sample(self, trainer: Trainer, model: Any, tokenizer: Any) -> list[Answer]:
        """K answers to each of this rank's prompts: those to the first one, then those to the second, and so on."""
        mine = self.texts[trainer.global_rank :: trainer.world_size]
        return sample_answers(model, tokenizer, mine, self.k, self.rollout, self.max_prompt_length)


def over_ranks(values: Tensor) -> Tensor:
    """What every rank has of its own prompts, in the order of all prompts, on every rank.

    Args:
        values: One row for each prompt of this rank, `(x, ...)`; the other sizes are the same everywhere.

    Returns:
        On the CPU, `(X, ...)`.
    """
    parts = gather_per_rank(values.cpu())
    together = torch.cat(parts)
    for rank, part in enumerate(parts):
        together[rank :: len(parts)] = part
    return together
