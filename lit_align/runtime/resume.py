"""Exact resume: a run that was stopped goes on as if it had not been.

Lightning restores weights, optimiser, schedule and progress, but no random numbers. Data order and position are the
DataModule's; this holds the generators of every rank.
"""

from __future__ import annotations

import random
import warnings
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from lightning.pytorch import Callback, LightningModule, Trainer


def gather_per_rank(mine: Any) -> list[Any]:
    """One object of every rank, in rank order. A checkpoint is written by rank 0, and every rank is given the same one."""
    if not dist.is_initialized():
        return [mine]
    everyone = [None] * dist.get_world_size()
    dist.all_gather_object(everyone, mine)
    return everyone


def random_state() -> dict[str, Any]:
    """State of every random generator of this process, in types that `torch.load(weights_only=True)` takes."""
    name, keys, *rest = np.random.get_state(legacy=True)
    version, internal, gauss = random.getstate()
    state = {
        "torch": torch.get_rng_state(),
        "numpy": [name, np.asarray(keys).tolist(), *rest],
        "python": [version, list(internal), gauss],
    }
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def set_random_state(state: dict[str, Any]) -> None:
    """Puts every random generator of this process where `random_state` found it."""
    torch.set_rng_state(state["torch"])
    name, keys, *rest = state["numpy"]
    np.random.set_state((name, np.array(keys, dtype=np.uint32), *rest))
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])


class RandomState(Callback):
    """Keeps the random generators of every rank in the checkpoint, and validation from drawing on them.

    A run that validates, or samples while it validates, therefore trains on the same numbers as one that does not.
    """

    def __init__(self) -> None:
        self._resumed: dict[str, Any] | None = None
        self._before_validation: dict[str, Any] | None = None

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Called on every rank; the state that training would go on with, also where validation saves it."""
        checkpoint["random_state"] = gather_per_rank(self._before_validation or random_state())

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Takes this rank's state, to be set once nothing before training can draw on it."""
        # It is resumable: its position is in the DataModule's state, for every rank, where Lightning does not look.
        warnings.filterwarnings("ignore", "You're resuming from a checkpoint that ended before the epoch ended")
        states = checkpoint.get("random_state", [])
        if len(states) == trainer.world_size:
            self._resumed = states[trainer.global_rank]

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """After the sanity check."""
        if self._resumed is not None:
            set_random_state(self._resumed)
            self._resumed = None

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Remembers where training was."""
        self._before_validation = random_state()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Puts it back."""
        if self._before_validation is not None:
            set_random_state(self._before_validation)
            self._before_validation = None


class EpochCount(Callback):
    """Counts the epoch that a run goes on with from the checkpoint of an epoch's last step.

    Lightning 2.6 begins that epoch without counting it. A checkpoint of it says then that no epoch is in progress, and who
    goes on from there trains a whole epoch where its rest was left.
    """

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Behind the loop's own bookkeeping, and before the first batch."""
        loop = trainer.fit_loop
        if loop.restarted_mid_epoch and loop.epoch_progress.current.ready == trainer.current_epoch and not loop.done:
            loop.epoch_progress.increment_ready()
            loop.epoch_progress.increment_started()
