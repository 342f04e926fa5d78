"""What the time of a run goes into."""

from __future__ import annotations

import time
from typing import Any

from lightning.pytorch import LightningModule, Trainer

from callbacks.base import Evaluation, evaluation_seconds
from lit_align.runtime import gather_per_rank

PARTS = ("rollout", "score", "update", "validation", "evaluation", "data")
SCORES = ("train/time/score", "train/time/judge")


class SpendTime(Evaluation):
    """What share of the time goes into sampling, scoring, updating, validating, measuring, and waiting for data.

    Metrics, shares of the time since the measurement before, mean over ranks, which add up to 1: `eval/time/rollout`, sampling;
    `/score`, rewards and log-probabilities of what was sampled, or the judge; `/update`, the batches themselves, forward,
    backward and optimiser; `/validation`; `/evaluation`, the callbacks of this package; `/data`, everything between two batches
    that is none of these: loading rows, writing checkpoints. And `eval/time/step`, seconds of an optimiser step, everything
    included.

    How long sampling and scoring took is what the method logs as `train/time/rollout` and `train/time/score` (or `judge`); for
    one that samples and does not log them it counts as data.

    Args:
        every_n_steps: Optimiser steps between two measurements.
        name: Stands for `time` in the metrics' names.
    """

    def __init__(self, every_n_steps: int = 50, name: str = "time") -> None:
        super().__init__(name, every_n_steps, at_start=False, seed=0)
        self._rollout: tuple[float, float] | None = None
        self._restart(None)

    def _restart(self, trainer: Trainer | None) -> None:
        self._spent = dict.fromkeys(PARTS, 0.0)
        self._window_began = self._mark = time.perf_counter()
        self._first_step = 0 if trainer is None else trainer.global_step
        self._evaluated = 0.0 if trainer is None else evaluation_seconds(trainer)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Starts the clock."""
        self._rollout = rollout_seconds(trainer)
        self._restart(trainer)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """What came since the batch before was for data, as far as nothing else is known."""
        self._pass("data", trainer)

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *batch: Any) -> None:
        """Takes the update's time, and that of a rollout which the method has logged since."""
        self._pass("update", trainer)
        logged = rollout_seconds(trainer)
        if logged is not None and logged != self._rollout:
            for part, seconds in zip(("rollout", "score"), logged, strict=True):
                self._spent[part] += seconds
                self._spent["data"] -= seconds
        self._rollout = logged
        super().on_train_batch_end(trainer, pl_module, *batch)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """What came before was not validation."""
        if not trainer.sanity_checking:
            self._pass("data", trainer)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Takes its time."""
        if not trainer.sanity_checking:
            self._pass("validation", trainer)

    def _pass(self, part: str, trainer: Trainer) -> None:
        """Gives the time since the last mark to a part, except what callbacks have measured in it."""
        mark, evaluated = time.perf_counter(), evaluation_seconds(trainer)
        of_callbacks = evaluated - self._evaluated
        self._spent["evaluation"] += of_callbacks
        self._spent[part] += mark - self._mark - of_callbacks
        self._mark, self._evaluated = mark, evaluated

    def evaluate(self, trainer: Trainer, module: LightningModule) -> dict[str, float]:
        """Brings the ranks' shares together."""
        seconds, steps = sum(self._spent.values()), trainer.global_step - self._first_step
        of_ranks = gather_per_rank([self._spent[part] / seconds for part in PARTS] + [seconds / steps])
        means = [sum(values) / len(of_ranks) for values in zip(*of_ranks, strict=True)]
        self._restart(trainer)
        return {f"eval/{self.name}/{name}": value for name, value in zip((*PARTS, "step"), means, strict=True)}


def rollout_seconds(trainer: Trainer) -> tuple[float, float] | None:
    """What the method last logged of its rollouts: seconds for sampling, and for scoring; None where it has none."""
    metrics = trainer.callback_metrics
    score = next((metrics[name] for name in SCORES if name in metrics), None)
    if score is None or "train/time/rollout" not in metrics:
        return None
    return float(metrics["train/time/rollout"]), float(score)
