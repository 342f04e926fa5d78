"""From prompts to training batches: a loader that samples, and then serves what was sampled in minibatches.

Lightning's loop stays the only one. It asks for the next batch; when the last rollout is used up, the loader collects the next,
so `training_step` is only the loss, and clipping, accumulation, schedules and checkpoints work as the Trainer documents them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from typing import Any, Protocol

import torch
from torch import Tensor

from lit_align.groups import GroupBatch, TokenGroup

Prompts = Any
"""A batch of prompts; `lit_align.data.PromptBatch` to the methods here."""

Collate = Callable[[Sequence[TokenGroup]], GroupBatch]
"""Makes a batch of groups, in some layout."""


class PositionedLoader(Protocol):
    """What is wrapped: a sized loader that knows where it stands."""

    def __len__(self) -> int: ...
    def __iter__(self) -> Iterator[Any]: ...

    def position(self) -> dict[str, Any]:
        """Where it stands, in types that `torch.load(weights_only=True)` takes."""

    def set_position(self, position: dict[str, Any]) -> None:
        """Goes on from where `position` was."""


class RolloutBatch:
    """A minibatch of sampled responses, and what was known of their tokens when they were sampled.

    A plain class for the reason given in `GroupBatch`.

    Args:
        batch: The prompts and responses.
        tokens: For each name, one value a response token, `(M,)`.
        responses: For each name, one value a response, `(N,)`.
        text: Other groups to train on in the same step (PPO-ptx), or None.
    """

    def __init__(
        self,
        batch: GroupBatch,
        tokens: dict[str, Tensor] | None = None,
        responses: dict[str, Tensor] | None = None,
        text: GroupBatch | None = None,
    ) -> None:
        self.batch = batch
        self.tokens = tokens or {}
        self.responses = responses or {}
        self.text = text

    @property
    def is_filler(self) -> bool:
        """As in `GroupBatch`."""
        return self.batch.is_filler

    def to(self, device: torch.device | str, non_blocking: bool = False) -> RolloutBatch:
        """The minibatch on another device."""
        tokens, responses = (
            {name: value.to(device, non_blocking=non_blocking) for name, value in values.items()}
            for values in (self.tokens, self.responses)
        )
        text = None if self.text is None else self.text.to(device, non_blocking)
        return RolloutBatch(self.batch.to(device, non_blocking), tokens, responses, text)


class Rollout:
    """Sampled responses, with what is known of them and their tokens, on the CPU.

    Args:
        groups: The sampled groups.
        collate: Lays groups out for a model.
        is_filler: As in `GroupBatch`.
        tokens: For each name, one value a response token, in the order of the groups, `(M,)`.
        responses: For each name, one value a response, in the order of the groups, `(N,)`.
    """

    def __init__(
        self,
        groups: Sequence[TokenGroup],
        collate: Collate,
        is_filler: bool = False,
        tokens: dict[str, Tensor] | None = None,
        responses: dict[str, Tensor] | None = None,
    ) -> None:
        self.groups = list(groups)
        self.collate = collate
        self.is_filler = is_filler
        self.tokens = tokens or {}
        self.responses = responses or {}

    def minibatch(self, index: Sequence[int]) -> RolloutBatch:
        """The groups of that index; without any, a filler, so that every rank has a batch."""
        chosen = list(index) or [0]
        batch = self.collate([self.groups[i] for i in chosen])
        batch.is_filler = self.is_filler or not index
        of_tokens = _chosen(self.tokens, [sum(map(len, group.responses)) for group in self.groups], chosen)
        return RolloutBatch(
            batch, of_tokens, _chosen(self.responses, [len(group.responses) for group in self.groups], chosen)
        )

    def state(self) -> dict[str, Any]:
        """The rollout in types that `torch.load(weights_only=True)` takes, and few of them, because a round may be long."""
        texts = [text for group in self.groups for text in (group.prompt, *group.responses)]
        scores = [score for group in self.groups for score in group.scores or ()]
        return {
            "ids": torch.tensor([i for text in texts for i in text], dtype=torch.int32),
            "lengths": torch.tensor([len(text) for text in texts]),
            "sizes": torch.tensor([len(group.responses) for group in self.groups]),
            "rows": torch.tensor([group.row for group in self.groups]),
            "scores": torch.tensor(scores, dtype=torch.float64) if scores else None,
            "tokens": self.tokens,
            "responses": self.responses,
            "is_filler": self.is_filler,
        }

    @classmethod
    def from_state(cls, state: dict[str, Any], collate: Collate) -> Rollout:
        """The rollout that `state` described."""
        texts = iter(ids.tolist() for ids in state["ids"].split(state["lengths"].tolist()))
        scores = None if state["scores"] is None else iter(state["scores"].tolist())
        groups = []
        for size, row in zip(state["sizes"].tolist(), state["rows"].tolist(), strict=True):
            prompt, responses = next(texts), list(islice(texts, size))
            groups.append(
                TokenGroup(prompt, responses, scores=None if scores is None else list(islice(scores, size)), row=row)
            )
        return cls(groups, collate, state["is_filler"], state["tokens"], state["responses"])


def _chosen(values: dict[str, Tensor], sizes: list[int], index: list[int]) -> dict[str, Tensor]:
    """The pieces of that index; every tensor is cut into pieces of these sizes."""
    pieces = {name: torch.split(value, sizes) for name, value in values.items()}
    return {name: torch.cat([piece[i] for i in index]) for name, piece in pieces.items()}


class RolloutLoader:
    """Collects a rollout from one or more batches of prompts and serves it `inner_epochs` times in shuffled minibatches.

    It is sized, because Lightning fetches an unsized loader one batch ahead, so that a rollout would come from the policy
    before its last update; and its position holds the rollout in use, so that a run resumes in the middle of an update.

    Args:
        prompts: The loader of prompts.
        collect: Makes a rollout of the next batches of prompts, with the policy as it is now.
        collate: Lays groups out for a model.
        inner_epochs: How often each response is trained on.
        minibatches: Into how many batches a rollout is cut, for each batch of prompts it was made of. Each is a batch to
            Lightning, so with `accumulate_grad_batches=1` each is an optimiser step.
        rounds: Batches of prompts in each rollout of an epoch, in turn; the last one is that of all further rollouts. A
            rollout at the end of an epoch is made of what is left.
        text: A loader whose batches are handed out with the minibatches, one with each, over and over.
    """

    def __init__(
        self,
        prompts: PositionedLoader,
        collect: Callable[[list[Prompts]], Rollout],
        collate: Collate,
        inner_epochs: int = 1,
        minibatches: int = 1,
        rounds: Sequence[int] = (1,),
        text: PositionedLoader | None = None,
    ) -> None:
        self.prompts = prompts
        self.collect = collect
        self.collate = collate
        self.inner_epochs = inner_epochs
        self.minibatches = minibatches
        self.rounds = list(rounds)
        self.text = text
        self._served = 0
        self._rollout: Rollout | None = None
        self._plan: list[list[int]] = []

    def __len__(self) -> int:
        return len(self.prompts) * self.inner_epochs * self.minibatches

    def __iter__(self) -> Iterator[RolloutBatch]:
        if not self._plan and self._served >= len(self.prompts):
            self._served = 0
        source: Iterator[Any] | None = None
        texts = self._texts()
        while True:
            if not self._plan:
                if self._served >= len(self.prompts):
                    return
                # Not before it is needed: the prompts' own epoch ends when their loader is asked again after its last batch.
                source = source or iter(self.prompts)
                joined = list(islice(source, self._next_round()))
                self._rollout = self.collect(joined)
                self._served += len(joined)
                self._plan = self._cut(len(self._rollout.groups), self.minibatches * len(joined))
            assert self._rollout is not None
            batch = self._rollout.minibatch(self._plan.pop(0))
            batch.text = next(texts)
            yield batch

    def stop_update(self) -> None:
        """Drops what is left of the rollout in use; the next batch comes from a new one."""
        self._plan = []

    def position(self) -> dict[str, Any]:
        """Where the loader stands, with the rollout it is serving."""
        rollout = self._rollout.state() if self._rollout is not None and self._plan else None
        return {
            "prompts": self.prompts.position(),
            "text": None if self.text is None else self.text.position(),
            "served": self._served,
            "rollout": rollout,
            "plan": list(self._plan),
        }

    def set_position(self, position: dict[str, Any]) -> None:
        """Goes on from where `position` was."""
        self.prompts.set_position(position["prompts"])
        if self.text is not None:
            self.text.set_position(position["text"])
        self._served = position["served"]
        self._rollout = None if position["rollout"] is None else Rollout.from_state(position["rollout"], self.collate)
        self._plan = [list(index) for index in position["plan"]]

    def _texts(self) -> Iterator[GroupBatch | None]:
        while True:
            if self.text is None:
                yield None
            else:
                yield from self.text

    def _next_round(self) -> int:
        """Batches of prompts in the rollout that comes next."""
        begin = 0
        for size in self.rounds:
            if begin >= self._served:
                return min(size, len(self.prompts) - begin)
            begin += size
        return min(self.rounds[-1], len(self.prompts) - self._served)

    def _cut(self, n: int, parts: int) -> list[list[int]]:
        orders = [torch.randperm(n) for _ in range(self.inner_epochs)]
        return [sorted(part.tolist()) for order in orders for part in order.tensor_split(parts)]
