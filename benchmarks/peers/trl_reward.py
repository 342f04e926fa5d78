"""TRL's side of `benchmarks.reward`. It runs in TRL's environment, which has no lit_align, by its path."""

# ruff: noqa: D102, D103  the names are TRL's

from __future__ import annotations

import importlib.util
import json
import sys
import warnings
from pathlib import Path

import torch
from datasets import load_dataset
from transformers import AutoModelForSequenceClassification, AutoTokenizer, TrainerCallback
from trl import RewardConfig, RewardTrainer

spec = importlib.util.spec_from_file_location("paired", Path(__file__).parents[1] / "paired.py")
paired = importlib.util.module_from_spec(spec)
spec.loader.exec_module(paired)


class InOrder(RewardTrainer):
    """Takes the rows in file order, and keeps the losses of a step."""

    losses = ()

    def _get_train_sampler(self, dataset=None):
        return torch.utils.data.SequentialSampler(self.train_dataset)

    def compute_loss(self, *arguments, **named):
        loss = super().compute_loss(*arguments, **named)
        self.losses = (*self.losses, loss.item())
        return loss


class Pause(TrainerCallback):
    """Reports each step's loss and waits before the next."""

    def __init__(self, served):
        self.served = served

    def on_train_begin(self, args, state, control, **kwargs):
        self.served.wait(settings={name: getattr(args, name) for name in SHOWN})

    def on_step_end(self, args, state, control, **kwargs):
        losses, self.trainer.losses = self.trainer.losses, ()
        self.served.wait(loss=sum(losses) / len(losses))


SHOWN = (
    "bf16",
    "gradient_checkpointing",
    "max_length",
    "per_device_train_batch_size",
    "gradient_accumulation_steps",
)


def main():
    warnings.filterwarnings("ignore")
    served = paired.Served(paired.resident())
    told = json.loads(sys.argv[1])
    torch.set_num_threads(told["threads"])
    folder = told["folder"]
    on_cpu = told["device"] == "cpu"
    config = RewardConfig(
        output_dir=f"{folder}/trl",
        per_device_train_batch_size=told["peer_batch"],
        gradient_accumulation_steps=told["accumulate"],
        max_length=told["max_length"],
        max_steps=told["steps"],
        learning_rate=1e-5,
        lr_scheduler_type="constant",
        bf16=True,
        use_cpu=on_cpu,
        gradient_checkpointing=False,
        report_to="none",
        save_strategy="no",
        logging_steps=10**6,
        disable_tqdm=True,
        dataloader_pin_memory=not on_cpu,
    )
    tokenizer = AutoTokenizer.from_pretrained(f"{folder}/model")
    model = AutoModelForSequenceClassification.from_pretrained(f"{folder}/model", dtype=torch.float32, num_labels=1)
    pause = Pause(served)
    trainer = InOrder(
        model=model,
        args=config,
        train_dataset=load_dataset("json", data_files=f"{folder}/pairs.jsonl", split="train", cache_dir=f"{folder}/hf"),
        processing_class=tokenizer,
        callbacks=[pause],
    )
    pause.trainer = trainer
    trainer.train()


if __name__ == "__main__":
    main()
