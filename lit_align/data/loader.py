"""A loader whose order is a function of (seed, epoch) and which can go on from any batch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, Generic, Protocol, TypeVar

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from lit_align.data.budget import Rows, TokenBudget
from lit_align.data.streamed import EncodedGroups
from lit_align.errors import UserError
from lit_align.groups import TokenGroup


class Batch(Protocol):
    """What a collate function makes."""

    is_filler: bool


class Positioned(Protocol):
    """A loader that knows where it stands."""

    def position(self) -> Any:
        """Where it stands, in types that `torch.load(weights_only=True)` takes."""

    def set_position(self, position: Any) -> None:
        """Goes on from where `position` was."""


BatchT = TypeVar("BatchT", bound=Batch)


class _Batches(Dataset[BatchT | UserError]):
    """Batches by the rows in them.

    A row that cannot be encoded, as streamed ones may turn out, is an item too: raised in a worker process, its one sentence
    would arrive within the traceback of that process.
    """

    def __init__(self, groups: EncodedGroups, collate: Callable[[list[TokenGroup]], BatchT]) -> None:
        self.groups = groups
        self.collate = collate

    def __getitem__(self, rows: list[int]) -> BatchT | UserError:
        try:
            return self.collate(self.groups.fetch(rows))
        except UserError as error:
            return error


def _as_it_is(batch: BatchT) -> BatchT:
    return batch


class GroupLoader(Generic[BatchT]):
    """Batches of groups, an equal number on every rank, each group in one of them.

    Shuffled, it is an endless stream of epochs, each in its own order: `iter()` serves the next `len()` batches from where
    the last one stopped, so that a training epoch cut short by `limit_train_batches` does not cost the rest of the data. In
    order (validation), each `iter()` starts with the first row.

    Batch i of an epoch is, over all ranks together, the i-th `batch_size * world` groups of the epoch's order: two ranks
    with batches of b train on the same groups as one rank with 2b. The last one is shared out as evenly as it can be; a rank
    that is left without a group gets a copy of one in a batch that says `is_filler`. With a `TokenBudget`, batch i is what it
    has room for, whatever the number of ranks, and is shared out by tokens.

    It is no DataLoader, so that Lightning injects no sampler, and it has no `state_dict`, so that Lightning, which would
    restore the state of rank 0 on every rank and lose it at the end of an epoch, leaves its position to the DataModule.

    Args:
        groups: The data set.
        batch_size: Groups in a batch of one rank.
        collate: Makes a batch of groups; it runs in the worker processes.
        shuffle: Whether the order is drawn anew for each epoch.
        seed: Of the order.
        rank: Of this process.
        world: Number of ranks.
        num_workers: Processes that collate; 0 for none.
        pin_memory: Whether batches lie in page-locked memory.
        budget: Of the tokens of a batch, in place of `batch_size`.
    """

    def __init__(
        self,
        groups: EncodedGroups,
        batch_size: int,
        collate: Callable[[list[TokenGroup]], BatchT],
        *,
        shuffle: bool,
        seed: int = 0,
        rank: int = 0,
        world: int = 1,
        num_workers: int = 0,
        pin_memory: bool = False,
        budget: TokenBudget | None = None,
    ) -> None:
        if batch_size < 1 or not 0 <= rank < world or not len(groups):
            raise ValueError(f"{len(groups)} groups in batches of {batch_size} for rank {rank} of {world}.")
        self.groups = groups
        self.batch_size = batch_size
        self.collate = collate
        self.shuffle = shuffle
        self.seed = seed
        self.rank = rank
        self.world = world
        self.num_workers = num_workers
        self.pin_memory = pin_memory
        self.budget = budget
        self._served = 0
        self._planned: dict[int, list[Rows]] = {}
        self._length = len(self._batches(0))

    def __len__(self) -> int:
        return self._length

    def __iter__(self) -> Iterator[BatchT]:
        # A generator, so nothing happens before the first batch is asked for: Lightning calls iter() more often than that.
        first = self._served if self.shuffle else 0
        batches = DataLoader(
            _Batches(self.groups, self.collate),
            batch_size=None,
            sampler=self._parts(first),
            collate_fn=_as_it_is,
            num_workers=self.num_workers,
            pin_memory=self.pin_memory,
            # Else DataLoader would draw its workers' seeds from the global generator, which the run's results depend on.
            generator=torch.Generator().manual_seed(self.seed),
        )
        for number, batch in enumerate(batches, start=first):
            if isinstance(batch, UserError):
                raise batch
            batch.is_filler = len(self._batches(number // len(self))[number % len(self)]) <= self.rank
            self._served = number + 1
            yield batch

    def identity(self) -> dict[str, Any]:
        """What a position refers to; the names are read by people."""
        rows = self.groups.fingerprint
        return {
            "number of rows": rows.rows,
            "hash of the rows' text": rows.text,
            "hash of the rows as encoded by tokenizer, template and lengths": rows.tokens,
            "data.seed": self.seed,
            "prompts in a batch over all ranks": str(self.budget) if self.budget else self.batch_size * self.world,
        }

    def position(self) -> dict[str, int]:
        """The batch that comes next, the same on every rank: `epoch`s and `batch`es of the current one that are past."""
        epoch, batch = divmod(self._served, len(self))
        return {"epoch": epoch, "batch": batch}

    def set_position(self, position: Mapping[str, int]) -> None:
        """The next `iter()` begins with this batch, or with the next epoch if this one has no such batch."""
        self._served = position["epoch"] * len(self) + min(position["batch"], len(self))

    def _parts(self, first: int) -> Iterator[list[int]]:
        """The rows of the next `len(self)` batches of this rank."""
        for number in range(first, first + len(self)):
            yield self._part(number).tolist() or self._batches(number // len(self))[0][:1].tolist()

    def _part(self, number: int) -> Rows:
        """This rank's rows of a batch, none where there are fewer than ranks."""
        epoch, place = divmod(number, len(self))
        batch = self._batches(epoch)[place]
        if self.budget is not None:
            return self.budget.share(batch, self.rank)
        share, extra = divmod(len(batch), self.world)
        begin = self.rank * share + min(self.rank, extra)
        return batch[begin : begin + share + (self.rank < extra)]

    def _batches(self, epoch: int) -> list[Rows]:
        """The rows of all batches of an epoch, over all ranks."""
        if epoch not in self._planned:
            # Worker processes may be an epoch ahead of the batches that are served.
            self._planned = {known: rows for known, rows in self._planned.items() if known == epoch - 1}
            order = self._order(epoch)
            if self.budget is not None:
                planned = self.budget.batches(order, len(self) if epoch else None)
            else:
                size = self.batch_size * self.world
                planned = [order[begin : begin + size] for begin in range(0, len(order), size)]
            self._planned[epoch] = planned
        return self._planned[epoch]

    def _order(self, epoch: int) -> Rows:
        if not self.shuffle:
            return np.arange(len(self.groups))
        return np.random.default_rng((self.seed, epoch)).permutation(len(self.groups))
