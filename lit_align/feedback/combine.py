"""Rewards made of rewards: weighted sums, limits, running normalisation."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lit_align.errors import UserError
from lit_align.feedback.source import Answer, RewardSource, Scores, checked
from lit_align.runtime import gather_per_rank

FLOAT32_STEP = 2**-23
"""Relative distance of neighbouring float32 numbers: a smaller spread than that is rounding."""


class WeightedSum(RewardSource):
    """Several sources, each under a name, added with weights.

    Each part is logged under its name as the source gave it, without its weight; parts of a part as `name/part`.

    Args:
        sources: The parts by name.
        weights: A weight for each name. With weight 0 a part is only watched.
    """

    def __init__(self, sources: dict[str, RewardSource], weights: dict[str, float]) -> None:
        if not sources:
            raise UserError("WeightedSum: name at least one source.")
        if sources.keys() != weights.keys():
            missing = sorted(sources.keys() - weights.keys())
            unknown = sorted(weights.keys() - sources.keys())
            wrong = [f"no weight for {name!r}" for name in missing] + [f"no source named {name!r}" for name in unknown]
            raise UserError(
                f"WeightedSum: there is {', '.join(wrong)}. Give every source one weight, under the same name."
            )
        for name, weight in weights.items():
            if not math.isfinite(weight):
                raise UserError(f"WeightedSum: the weight of {name!r} must be a finite number, got {weight}.")
        self.sources = dict(sources)
        self.weights = dict(weights)

    def __call__(self, answers: Sequence[Answer]) -> Scores:
        """The weighted sum of what the sources say."""
        return self._sum({name: source(answers) for name, source in self.sources.items()}, answers)

    def score_rollout(self, answers: Sequence[Answer]) -> Scores:
        """See `RewardSource.score_rollout`."""
        return self._sum({name: source.score_rollout(answers) for name, source in self.sources.items()}, answers)

    def to(self, device: torch.device | str) -> None:
        """Moves every source."""
        for source in self.sources.values():
            source.to(device)

    def attach(self, policy: Any) -> None:
        """Shows the policy to every source."""
        for source in self.sources.values():
            source.attach(policy)

    def state_dict(self) -> dict[str, Any]:
        """States of those sources that have one, by name."""
        states = {name: source.state_dict() for name, source in self.sources.items()}
        return {name: state for name, state in states.items() if state}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Gives every source its state."""
        if gone := sorted(state.keys() - self.sources.keys()):
            raise UserError(
                f"The checkpoint keeps running statistics of {', '.join(map(repr, gone))}, which the WeightedSum no longer "
                "has. Resume with the reward that the run was started with."
            )
        for name, source in self.sources.items():
            source.load_state_dict(state.get(name, {}))

    def _sum(self, parts: dict[str, Scores], answers: Sequence[Answer]) -> Scores:
        total, components = torch.zeros(len(answers), dtype=torch.float32), {}
        for name, part in parts.items():
            components[name] = checked(part.total, answers, f"The reward {name!r}")
            total += self.weights[name] * components[name]
            components |= {f"{name}/{inner}": values for inner, values in part.components.items()}
        return Scores(total, components)


@dataclass(frozen=True)
class Clipped(RewardSource):
    """Another source, kept within limits. What it said before is the component `unclipped`.

    Args:
        source: The source.
        low: Lower scores become this one; none if None.
        high: Higher scores become this one; none if None.
    """

    source: RewardSource
    low: float | None = None
    high: float | None = None

    def __post_init__(self) -> None:
        if self.low is None and self.high is None:
            raise UserError(
                "Clipped: without low and high there is nothing to clip; give one, or leave the wrapper out."
            )
        if self.low is not None and self.high is not None and not self.low < self.high:
            raise UserError(f"Clipped: low ({self.low}) must be smaller than high ({self.high}).")

    def __call__(self, answers: Sequence[Answer]) -> Scores:
        """The source's scores within the limits."""
        return self._clip(self.source(answers))

    def score_rollout(self, answers: Sequence[Answer]) -> Scores:
        """See `RewardSource.score_rollout`."""
        return self._clip(self.source.score_rollout(answers))

    def to(self, device: torch.device | str) -> None:
        """Moves the source."""
        self.source.to(device)

    def attach(self, policy: Any) -> None:
        """Shows the policy to the source."""
        self.source.attach(policy)

    def state_dict(self) -> dict[str, Any]:
        """The source's."""
        return self.source.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Gives it to the source."""
        self.source.load_state_dict(state)

    def _clip(self, scores: Scores) -> Scores:
        total = scores.total.clamp(self.low, self.high)
        return Scores(total, {**scores.components, "unclipped": scores.total})


class Moments(NamedTuple):
    """Count, mean and spread of numbers, that can be added up without keeping the numbers (Chan et al. 1979).

    Args:
        number: How many.
        mean: 0 if none.
        squares: Sum of the squared deviations from the mean.
    """

    number: int = 0
    mean: float = 0.0
    squares: float = 0.0

    @classmethod
    def of(cls, values: Tensor) -> Moments:
        """Of the values of a tensor, `(N,)`."""
        if not len(values):
            return cls()
        mean = values.double().mean()
        return cls(len(values), mean.item(), (values.double() - mean).square().sum().item())

    @property
    def std(self) -> float:
        """Of the numbers as a population; 1 where they are all equal."""
        std = math.sqrt(self.squares / max(self.number, 1))
        return std if std > FLOAT32_STEP * abs(self.mean) else 1.0

    def with_more(self, other: Moments) -> Moments:
        """Of both sets of numbers."""
        number = self.number + other.number
        if not number:
            return self
        gap = other.mean - self.mean
        mean = self.mean + gap * other.number / number
        return Moments(number, mean, self.squares + other.squares + gap**2 * self.number * other.number / number)


class Normalised(RewardSource):
    """Another source in units of its own standard deviation. What it said before is the component `unnormalised`.

    Mean and standard deviation (of the population) are those of all training rollouts so far, of all ranks, the present one
    included. Scores of validation and callbacks are normalised by them and do not enter them. Before the first rollout, and
    while all scores have been equal, the deviation counts as 1; before the first rollout the mean counts as 0.

    Args:
        source: The source.
        remove_mean: Whether the mean is taken off too. Kept, a reward of 0 stays one, as for PPO's rewards (Huang et al. 2024,
            "The N+ Implementation Details of RLHF with PPO"); taken off, an average answer is worth 0.
    """

    def __init__(self, source: RewardSource, remove_mean: bool = False) -> None:
        self.source = source
        self.remove_mean = remove_mean
        self._seen = Moments()

    def __call__(self, answers: Sequence[Answer]) -> Scores:
        """The source's scores, normalised by what rollouts have shown so far."""
        return self._normalise(self.source(answers))

    def score_rollout(self, answers: Sequence[Answer]) -> Scores:
        """See `RewardSource.score_rollout`."""
        scores = self.source.score_rollout(answers)
        # In the order of the ranks, so that all have the same statistics to the last bit.
        for moments in gather_per_rank(Moments.of(scores.total)):
            self._seen = self._seen.with_more(moments)
        return self._normalise(scores)

    def to(self, device: torch.device | str) -> None:
        """Moves the source."""
        self.source.to(device)

    def attach(self, policy: Any) -> None:
        """Shows the policy to the source."""
        self.source.attach(policy)

    def state_dict(self) -> dict[str, Any]:
        """The statistics, and the source's state."""
        return {**self._seen._asdict(), "source": self.source.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on with the statistics."""
        if state.keys() != self.state_dict().keys():
            raise UserError(
                "The checkpoint keeps no running statistics for Normalised, which the config now has. Resume with the reward "
                "that the run was started with."
            )
        self._seen = Moments(state["number"], state["mean"], state["squares"])
        self.source.load_state_dict(state["source"])

    def _normalise(self, scores: Scores) -> Scores:
        total = (scores.total - self._seen.mean if self.remove_mean else scores.total) / self._seen.std
        return Scores(total, {**scores.components, "unnormalised": scores.total})
