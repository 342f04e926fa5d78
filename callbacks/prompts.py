"""The fixed prompts that a callback samples responses to, shared out over ranks."""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import cached_property
from typing import Any

import torch
from lightning.pytorch import Trainer
from torch import Tensor

from lit_align.data.counts import Counts
from lit_align.data.embedded import embedded_groups, embedded_prompts, is_embedded
from lit_align.data.encoding import Encoder, Lengths
from lit_align.data.prompts import PromptCounts, read_prompts
from lit_align.data.rows import read_groups
from lit_align.errors import UserError
from lit_align.feedback import Answer, sample_answers
from lit_align.groups import Group, Text
from lit_align.rollout import RolloutConfig
from lit_align.runtime import gather_per_rank


class PromptSet:
    """X prompts with K samples each, the same prompts at every measurement.

    Rank r of R has the prompts r, r + R, r + 2R, ...; where there are fewer prompts than ranks, some have none.

    Args:
        name: Where the prompts are read: as `PromptData.val`. They should be prompts that are not trained on.
        n_prompts: The first so many.
        k: Responses to each prompt.
        rollout: How responses are sampled.
        max_prompt_length: Tokens of a prompt; a longer one loses its beginning.
        with_responses: Whether the rows' own responses are wanted too; rows without a good one are then passed over.
        distinct: Whether a prompt that comes again is passed over.
    """

    def __init__(
        self,
        name: str,
        n_prompts: int,
        k: int,
        rollout: RolloutConfig,
        max_prompt_length: int,
        with_responses: bool = False,
        distinct: bool = True,
    ) -> None:
        for what, value in {"n_prompts": n_prompts, "k": k, "max_prompt_length": max_prompt_length}.items():
            if value < 1:
                raise UserError(f"{what} must be at least 1, got {value}.")
        self.name = name
        self.n_prompts = n_prompts
        self.k = k
        self.rollout = rollout
        self.max_prompt_length = max_prompt_length
        self.with_responses = with_responses
        self.distinct = distinct

    @cached_property
    def groups(self) -> list[Group]:
        """The prompts, each with its best response if responses are wanted; read when they are first asked for.

        Raises:
            UserError: There are none, or a row has none.
        """
        groups: dict[str | int, Group] = {}
        for group in self._read():
            if len(groups) == self.n_prompts:
                break
            groups.setdefault(json.dumps(group.prompt) if self.distinct else len(groups), group)
        if not groups:
            raise UserError(f"{self.name} holds no prompts{' with a good response' if self.with_responses else ''}.")
        return list(groups.values())

    @property
    def texts(self) -> list[Text]:
        """The prompts."""
        return [group.prompt for group in self.groups]

    def _read(self) -> Iterator[Group]:
        embedded = is_embedded(self.name)
        if not self.with_responses:
            counts = PromptCounts("raise")
            yield from embedded_prompts(self.name, None, "val") if embedded else read_prompts(self.name, counts)
            return
        drawn = embedded_groups(self.name, "sft", None, 0, "val") if embedded else None
        for group in drawn or read_groups(self.name, Counts("raise")):
            if (best := best_response(group)) is not None:
                yield Group(group.prompt, (best,), source=group.source, finished=group.finished)

    def sample(self, trainer: Trainer, model: Any, tokenizer: Any) -> list[Answer]:
        """K answers to each of this rank's prompts: those to the first one, then those to the second, and so on."""
        mine = self.texts[trainer.global_rank :: trainer.world_size]
        return sample_answers(model, tokenizer, mine, self.k, self.rollout, self.max_prompt_length)

    def row_answers(self, trainer: Trainer, tokenizer: Any) -> list[Answer]:
        """The rows' own responses to this rank's prompts, each K times, as `sample` orders them."""
        lengths = Lengths(self.max_prompt_length + self.rollout.max_new_tokens, self.max_prompt_length, "cut")
        mine = self.groups[trainer.global_rank :: trainer.world_size]
        return [
            Answer(group.prompt, group.responses[0], tokens.prompt, tokens.responses[0], group.finished)
            for group, tokens in Encoder(tokenizer, lengths, Counts("raise")).encode(mine)
            for _ in range(self.k)
        ]


def best_response(group: Group) -> str | None:
    """The response that a row holds for the best: by score, or the first desirable one, or the first; None if none is good."""
    if group.scores is not None:
        return group.responses[max(range(len(group.responses)), key=group.scores.__getitem__)]
    if group.labels is not None:
        return next((text for text, good in zip(group.responses, group.labels, strict=True) if good), None)
    return group.responses[0]


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
