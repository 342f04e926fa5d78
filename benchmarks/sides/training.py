"""What our sides of the training benchmarks share: a Trainer that waits behind every step."""

from __future__ import annotations

import json
import sys
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import torch
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer

from benchmarks.paired import Served, resident


class Pause(Callback):
    """Reports each step's loss and waits before the next, so that fetching its batch is part of it."""

    def __init__(self, served: Served) -> None:
        self.served = served

    def on_train_start(self, trainer: Trainer, pl_module: Any) -> None:
        """The reference is kept or cached by now."""
        self.served.wait()

    def on_train_batch_end(self, trainer: Trainer, *arguments: Any) -> None:
        """The optimiser has stepped."""
        self.served.wait(loss=float(trainer.callback_metrics["train/loss"]))


def adamw(parameters: Any) -> torch.optim.Optimizer:
    """The optimiser of both sides."""
    return torch.optim.AdamW(parameters, lr=1e-5, weight_decay=0.0, fused=True)


def train(build: Callable[[Mapping[str, Any]], tuple[LightningModule, LightningDataModule]]) -> None:
    """Trains what `build` makes of the settings that the command line holds, with a pause behind every step."""
    warnings.filterwarnings("ignore")
    served = Served(resident())
    told = json.loads(sys.argv[1])
    torch.set_num_threads(told["threads"])
    module, data = build(told)
    trainer = Trainer(
        accelerator="gpu" if told["device"] == "cuda" else "cpu",
        devices=1,
        precision="bf16-mixed",
        max_steps=told["steps"],
        # The peer is given the rows in file order; so are we.
        overfit_batches=1.0,
        gradient_clip_val=1.0,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[Pause(served)],
    )
    trainer.fit(module, data)
