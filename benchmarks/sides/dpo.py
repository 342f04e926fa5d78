"""Our side of `benchmarks.dpo`."""

from __future__ import annotations

import json
import sys
import warnings
from typing import Any

import torch
from lightning.pytorch import Callback, Trainer

from benchmarks.paired import Served, resident
from lit_align.data import PreferenceData
from lit_align.losses import DPO as DPOLoss
from lit_align.methods import DPO, Schedule
from lit_align.models import CachedReference, FrozenReference, ModelConfig


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


def main() -> None:
    """Trains with a pause behind every step."""
    warnings.filterwarnings("ignore")
    served = Served(resident())
    told = json.loads(sys.argv[1])
    torch.set_num_threads(told["threads"])
    folder = told["folder"]
    reference = FrozenReference() if told["reference"] == "frozen" else CachedReference(f"{folder}/cache")
    module = DPO(
        ModelConfig(f"{folder}/model"),
        DPOLoss(beta=0.1),
        reference=reference,
        optimizer=lambda parameters: torch.optim.AdamW(parameters, lr=1e-5, weight_decay=0.0, fused=True),
        lr_scheduler=Schedule(),
    )
    data = PreferenceData(
        f"{folder}/rows.jsonl",
        batch_size=told["batch"],
        max_length=told["max_length"],
        layout=told["layout"],
        tokens_per_row=told["tokens_per_row"],
        seed=0,
    )
    # The peer is given the rows in file order; so are we.
    trainer = Trainer(
        accelerator="gpu" if told["device"] == "cuda" else "cpu",
        devices=1,
        precision="bf16-mixed",
        max_steps=told["steps"],
        overfit_batches=1.0,
        gradient_clip_val=1.0,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[Pause(served)],
    )
    trainer.fit(module, data)


if __name__ == "__main__":
    main()
