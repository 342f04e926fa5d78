"""The loader whose one rollout serves every epoch."""

from __future__ import annotations

import io
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch

from lit_align.data import padded
from lit_align.groups import TokenGroup
from lit_align.rollout.kept import KeptRolloutLoader
from lit_align.rollout.loader import Rollout, RolloutBatch

COLLATE = partial(padded, pad_id=0)


class Numbers:
    """Five batches of two prompts, endless, with a position."""

    def __init__(self) -> None:
        self.served = 0

    def __len__(self) -> int:
        return 5

    def __iter__(self) -> Iterator[list[int]]:
        for _ in range(5):
            self.served += 1
            yield [self.served * 2 - 2, self.served * 2 - 1]

    def position(self) -> dict[str, Any]:
        return {"served": self.served}

    def set_position(self, position: dict[str, Any]) -> None:
        self.served = position["served"]


class Sampler:
    """Says a random token to every prompt, and counts how often it was asked."""

    def __init__(self) -> None:
        self.asked = 0

    def __call__(self, batches: list[list[int]]) -> Rollout:
        self.asked += 1
        groups = [
            TokenGroup([p + 1], [[int(torch.randint(9, ())) + 1], [3]], scores=[1.0, float(p)], row=p)
            for batch in batches
            for p in batch
        ]
        return Rollout(groups, COLLATE)


def served(batch: RolloutBatch) -> list[tuple[int, int]]:
    """Rows of a batch, and the tokens that were said to them."""
    assert batch.batch.scores is not None
    return list(zip(batch.batch.rows.tolist(), batch.batch.targets[::2].tolist(), strict=True))


def test_every_epoch_serves_the_same_responses_in_another_order() -> None:
    torch.manual_seed(0)
    sampler = Sampler()
    loader = KeptRolloutLoader(Numbers(), sampler, COLLATE)
    epochs = [[served(batch) for batch in loader] for _ in range(3)]
    assert sampler.asked == 1
    assert [len(epoch) for epoch in epochs] == [len(loader)] * 3 == [5] * 3
    first, *others = ([pair for batch in epoch for pair in batch] for epoch in epochs)
    assert sorted(row for row, _ in first) == list(range(10))
    for other in others:
        assert other != first
        assert sorted(other) == sorted(first)


def test_a_run_goes_on_with_the_responses_it_began_with() -> None:
    def on_disk(position: dict[str, Any]) -> dict[str, Any]:
        file = io.BytesIO()
        torch.save(position, file)
        file.seek(0)
        loaded: dict[str, Any] = torch.load(file, weights_only=True)
        return loaded

    def three_epochs(loader: KeptRolloutLoader) -> Iterator[RolloutBatch]:
        for _ in range(3):
            yield from loader

    torch.manual_seed(0)
    loader = KeptRolloutLoader(Numbers(), Sampler(), COLLATE)
    whole, positions = [], []
    for batch in three_epochs(loader):
        positions.append((on_disk(loader.position()), torch.get_rng_state()))
        whole.append(served(batch))
    for done, (position, random) in enumerate(positions, start=1):
        sampler = Sampler()
        again = KeptRolloutLoader(Numbers(), sampler, COLLATE)
        again.set_position(position)
        torch.set_rng_state(random)
        # What is left of the epoch, if anything; then whole epochs.
        rest = [served(batch) for _ in range(3) for batch in again][: 15 - done]
        assert rest == whole[done:], done
        assert sampler.asked == 0
