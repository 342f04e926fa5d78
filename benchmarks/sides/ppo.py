"""Our side of `benchmarks.ppo`."""

from __future__ import annotations

import json
import sys
import warnings
from typing import Any

import torch
from lightning.pytorch import Callback, Trainer

from benchmarks.paired import Served, resident
from lit_align.data import PromptData
from lit_align.feedback import RewardModelReward
from lit_align.methods import PPO, Schedule
from lit_align.models import ModelConfig
from lit_align.rollout import RolloutConfig


class Pause(Callback):
    """Waits before each rollout, behind the last optimiser step on the one before."""

    def __init__(self, served: Served, steps: int) -> None:
        self.served = served
        self.steps = steps

    def on_train_start(self, trainer: Trainer, pl_module: Any) -> None:
        """The models are loaded by now."""
        self.served.wait()

    def on_train_batch_end(self, trainer: Trainer, *arguments: Any) -> None:
        """The optimiser has stepped."""
        if trainer.global_step % self.steps == 0:
            self.served.wait(entropy=float(trainer.callback_metrics["train/entropy"]))


def main() -> None:
    """Trains with a pause behind every rollout."""
    warnings.filterwarnings("ignore")
    served = Served(resident())
    told = json.loads(sys.argv[1])
    torch.set_num_threads(told["threads"])
    folder = told["folder"]
    module = PPO(
        ModelConfig(f"{folder}/model"),
        RewardModelReward(
            ModelConfig(f"{folder}/reward", dtype="bfloat16" if told["precision"] == "bf16-true" else "float32")
        ),
        RolloutConfig(max_new_tokens=told["response_length"]),
        critic=ModelConfig(f"{folder}/reward") if told["critic"] == "separate" else None,
        inner_epochs=told["inner_epochs"],
        layout=told["layout"],
        log_samples_every=0,
        optimizer=lambda parameters: torch.optim.AdamW(parameters, lr=1e-6, weight_decay=0.0, fused=True),
        lr_scheduler=Schedule(),
    )
    data = PromptData(
        f"{folder}/rows.jsonl", batch_size=told["batch"], max_prompt_length=told["max_prompt_length"], seed=0
    )
    trainer = Trainer(
        accelerator="gpu" if told["device"] == "cuda" else "cpu",
        devices=1,
        precision=told["precision"],
        max_epochs=told["updates"],
        gradient_clip_val=1.0,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[Pause(served, told["inner_epochs"])],
    )
    trainer.fit(module, data)


if __name__ == "__main__":
    main()
