"""The one epoch of SPA: passes over the labelled seed, then rounds; how long each stage is, and what serves them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, NamedTuple

from lightning.pytorch import Trainer

from lit_align.data import GroupLoader, PreferenceData
from lit_align.errors import UserError
from lit_align.rollout.loader import PositionedLoader, RolloutBatch, RolloutLoader


@dataclass(frozen=True)
class SeedPairs:
    """The few labelled pairs that SPA begins with.

    Args:
        data: Where they come from.
        epochs: Passes over them; the paper makes 3 over fewer than 2,000 pairs.
    """

    data: PreferenceData
    epochs: int = 3

    def __post_init__(self) -> None:
        if self.epochs < 1:
            raise UserError(
                f"seed.epochs must be at least 1, got {self.epochs}; to begin without a seed leave seed out."
            )
        if self.data.names["val"]:
            raise UserError("seed.data.val has no effect, SPA validates on the prompts of data.val: leave it out.")


class Stages(NamedTuple):
    """How long the stages of a run are.

    Args:
        seed: Batches of the seed, 0 without one.
        rounds: Batches of each round.
        accumulated: Batches of an optimiser step.
    """

    seed: int
    rounds: list[int]
    accumulated: int

    @property
    def steps(self) -> list[int]:
        """Optimiser steps of each stage, the seed first if there is one."""
        batches = [self.seed, *self.rounds] if self.seed else self.rounds
        return [n // self.accumulated for n in batches]

    def begin(self, number: int) -> int:
        """The optimiser step that a round begins with; rounds count from 1."""
        return (self.seed + sum(self.rounds[: number - 1])) // self.accumulated


def stages(
    trainer: Trainer,
    prompts: GroupLoader[Any],
    prompts_per_round: Sequence[int],
    seed: PositionedLoader | None,
    epochs: int,
) -> Stages:
    """The stages of a run.

    Raises:
        UserError: The Trainer wants more than one epoch, there are too few prompts, or a stage is not made of whole batches and
            optimiser steps.
    """
    if trainer.max_epochs != 1:
        raise UserError(
            f"SPA makes the passes over its seed and all of its rounds in one epoch of the Trainer, and trainer.max_epochs is "
            f"{trainer.max_epochs}: set it to 1, and take more rounds or seed.epochs."
        )
    size, there = prompts.batch_size * prompts.world, len(prompts.groups)
    if sum(prompts_per_round) > there:
        raise UserError(
            f"prompts_per_round asks for {sum(prompts_per_round):,} prompts, each for one round only, and there are "
            f"{there:,}: take smaller rounds, or more prompts."
        )
    for n in prompts_per_round:
        if n % size:
            raise UserError(
                f"A round of {n:,} prompts does not divide into batches of {size} (data.batch_size times the number of "
                f"devices): take {n // size * size or size:,}."
            )
    found = Stages(
        seed=0 if seed is None else epochs * len(seed),
        rounds=[n // size for n in prompts_per_round],
        accumulated=trainer.accumulate_grad_batches,
    )
    names = ["The seed", *(f"Round {number}" for number in range(1, len(found.rounds) + 1))]
    for name, batches in zip(names, [found.seed, *found.rounds], strict=True):
        if batches % found.accumulated:
            raise UserError(
                f"{name} has {batches} batches, and an optimiser step would begin in it and end in what follows: make that a "
                f"multiple of accumulate_grad_batches ({found.accumulated})."
            )
    return found


class SeedThenRounds:
    """Serves the batches of the seed for so many epochs, then those of the rounds; it can go on from any batch.

    Args:
        seed: The seed's loader, None without one.
        rounds: The loader that samples a round when its first batch is asked for.
        stages: How many batches to serve of each.
    """

    def __init__(self, seed: PositionedLoader | None, rounds: RolloutLoader, stages: Stages) -> None:
        self.seed = seed
        self.rounds = rounds
        self.stages = stages
        self._served = 0

    def __len__(self) -> int:
        return self.stages.seed + sum(self.stages.rounds)

    def __iter__(self) -> Iterator[RolloutBatch]:
        while self.seed is not None and self._served < self.stages.seed:
            for batch in islice(self.seed, self.stages.seed - self._served):
                self._served += 1
                yield RolloutBatch(batch)
        # No batch more, which would be the first of another round.
        for pairs in islice(self.rounds, len(self) - self._served):
            self._served += 1
            yield pairs

    @property
    def is_done(self) -> bool:
        """Whether every batch has been served."""
        return self._served == len(self)

    def position(self) -> dict[str, Any]:
        """Where the loader stands, with the round it is serving."""
        return {
            "served": self._served,
            "seed": None if self.seed is None else self.seed.position(),
            "rounds": self.rounds.position(),
        }

    def set_position(self, position: dict[str, Any]) -> None:
        """Goes on from where `position` was."""
        self._served = position["served"]
        if self.seed is not None:
            self.seed.set_position(position["seed"])
        self.rounds.set_position(position["rounds"])
