"""What the callbacks share: when they look, what they may ask of a module, and that training does not notice."""

from __future__ import annotations

import random
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers.logger import DummyLogger

from lit_align.errors import UserError
from lit_align.runtime.resume import random_state, set_random_state

RANK_STRIDE = 1_000_003
"""Between the seeds of neighbouring ranks: far enough that no two callbacks of a run meet with seeds people choose."""


class Evaluation(Callback, ABC):
    """A callback that measures something every so many optimiser steps, on all ranks at the same step.

    What it measures is logged as `eval/...` at once, whatever `log_every_n_steps` says, and stands in
    `trainer.callback_metrics`, so that `ModelCheckpoint(monitor="eval/...")` finds it. In the loggers it has the number of the
    training step before it, as validation has.

    Args:
        name: What its metrics begin with after `eval/`; two callbacks of one kind need two names.
        every_n_steps: Optimiser steps between two measurements.
        at_start: Whether to measure before the first step too.
        seed: Of what the callback draws, the same at each measurement, so that two of them differ by the model alone.
    """

    def __init__(self, name: str, every_n_steps: int, at_start: bool, seed: int) -> None:
        if every_n_steps < 1:
            raise UserError(f"{type(self).__name__}: every_n_steps must be at least 1, got {every_n_steps}.")
        self.name = name
        self.every_n_steps = every_n_steps
        self.at_start = at_start
        self.seed = seed
        self.seconds = 0.0
        """Spent on measuring since the callback was made; see `evaluation_seconds`."""
        self._last_step: int | None = None

    @abstractmethod
    def evaluate(self, trainer: Trainer, module: LightningModule) -> dict[str, float]:
        """Measures, inside `quiet`, on every rank.

        Returns:
            Metrics by their whole name, `eval/...`, the same numbers on every rank.
        """

    def react(self, trainer: Trainer, metrics: Mapping[str, float]) -> None:
        """For callbacks that warn or stop; called after the metrics are logged, with the same numbers on every rank."""

    @property
    def state_key(self) -> str:
        """Tells two callbacks of one kind apart in a checkpoint."""
        return f"{type(self).__name__}[{self.name}]"

    def state_dict(self) -> dict[str, Any]:
        """The step of the last measurement, which a resumed run does not repeat."""
        return {"last_step": self._last_step}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes it back."""
        self._last_step = state_dict["last_step"]

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Measures the model as it is before the first step."""
        if self.at_start and trainer.global_step == 0:
            self._measure(trainer, pl_module)

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *batch: Any) -> None:
        """Measures if this batch ended a step whose turn it is; of accumulated batches only the last one does."""
        if trainer.global_step > 0 and trainer.global_step % self.every_n_steps == 0:
            self._measure(trainer, pl_module)

    def _measure(self, trainer: Trainer, module: LightningModule) -> None:
        if trainer.global_step == self._last_step:
            return
        began = time.perf_counter()
        self._last_step = trainer.global_step
        with quiet(trainer, module, self.seed):
            metrics = self.evaluate(trainer, module)
        log_now(trainer, metrics)
        self.react(trainer, metrics)
        self.seconds += time.perf_counter() - began


def evaluation_seconds(trainer: Trainer) -> float:
    """What all callbacks of a run have spent on measuring so far, on this rank; whoever times training leaves it out."""
    callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
    return sum(callback.seconds for callback in callbacks if isinstance(callback, Evaluation))


@contextmanager
def quiet(trainer: Trainer, module: LightningModule, seed: int) -> Iterator[None]:
    """Inside: eval mode, no gradients, random numbers of the callback's own. Afterwards everything is as it was.

    That is the generators of Python, numpy, torch and the CUDA device in use, the mode of every submodule, `requires_grad` of
    every parameter, and the side on which the tokenizer pads and cuts.

    Args:
        trainer: Its rank takes part in the seed, so that ranks draw different numbers.
        module: The module that is trained.
        seed: What the generators start from inside.
    """
    tokenizer = getattr(module, "tokenizer", None)
    sides = {name: getattr(tokenizer, name) for name in ("padding_side", "truncation_side") if hasattr(tokenizer, name)}
    modes = [(part, part.training) for part in module.modules()]
    gradients = [(parameter, parameter.requires_grad) for parameter in module.parameters()]
    state = random_state()
    try:
        seed_generators(trainer, seed)
        module.eval()
        with torch.no_grad():
            yield
    finally:
        set_random_state(state)
        for part, training in modes:
            part.training = training
        for parameter, requires_grad in gradients:
            parameter.requires_grad_(requires_grad)
        for name, side in sides.items():
            setattr(tokenizer, name, side)


def seed_generators(trainer: Trainer, seed: int) -> None:
    """Starts every generator of this process from a seed and the rank; only inside `quiet`."""
    of_rank = (seed + RANK_STRIDE * trainer.global_rank) % 2**32
    random.seed(of_rank)
    np.random.seed(of_rank)
    torch.manual_seed(of_rank)


def log_now(trainer: Trainer, metrics: Mapping[str, float]) -> None:
    """Logs at this moment, in any hook, and leaves the metrics where `ModelCheckpoint` and `EarlyStopping` look.

    Args:
        trainer: Training.
        metrics: The same on every rank.
    """
    if not metrics:
        return
    for name, value in metrics.items():
        trainer.callback_metrics[name] = torch.tensor(value)
    # Lightning counts logged steps from 0, so what is measured after step n stands beside what step n logged.
    step = max(trainer.global_step - 1, 0)
    for logger in trainer.loggers:
        logger.log_metrics({**metrics, "epoch": trainer.current_epoch}, step=step)
        logger.save()


def output_folder(trainer: Trainer) -> Path | None:
    """Where a callback of this process may write files: `<run>/eval`, made if need be.

    None on ranks other than the first, and in runs that log nothing.
    """
    if not trainer.is_global_zero or not trainer.loggers or isinstance(trainer.logger, DummyLogger):
        return None
    folder = Path(trainer.default_root_dir) / "eval"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def ask(module: LightningModule, attribute: str, callback: Callback) -> Any:
    """An attribute that a callback needs of a module.

    Raises:
        UserError: The module has none.
    """
    if getattr(module, attribute, None) is None:
        raise UserError(
            f"{type(callback).__name__} needs {MEANING[attribute]}, and {type(module).__name__} has no attribute "
            f"`{attribute}`. Give it one, or leave the callback out."
        )
    return getattr(module, attribute)


MEANING = {
    "policy": "the language model that is trained, `policy`",
    "tokenizer": "the policy's tokenizer, `tokenizer`",
    "reference_model": "the model that the policy is compared with, `reference_model()`",
    "rewards": "the rewards of a batch's responses, `rewards(batch)`",
}
"""What callbacks ask of a module, by attribute."""
