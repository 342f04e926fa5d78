"""TRL's side of `benchmarks.ppo`. It runs in TRL's environment, which has no lit_align, by its path."""

# ruff: noqa: D102, D103  the names are TRL's

from __future__ import annotations

import importlib.util
import json
import os
import sys
import warnings
from pathlib import Path

os.environ["TRL_EXPERIMENTAL_SILENCE"] = "1"

import torch
from datasets import Dataset
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    TrainerCallback,
)
from trl.experimental.ppo import PPOConfig, PPOTrainer

spec = importlib.util.spec_from_file_location("paired", Path(__file__).parents[1] / "paired.py")
paired = importlib.util.module_from_spec(spec)
spec.loader.exec_module(paired)


class Pause(TrainerCallback):
    """Waits before each rollout, behind the last optimiser step on the one before."""

    def __init__(self, served):
        self.served = served

    def on_train_begin(self, args, state, control, **kwargs):
        self.served.wait(settings={name: getattr(args, name) for name in SHOWN})

    def on_step_end(self, args, state, control, **kwargs):
        # TRL has the temperature in its logits, which is 1 here.
        self.served.wait(entropy=state.log_history[-1]["policy/entropy_avg"])


SHOWN = (
    "bf16",
    "gradient_checkpointing",
    "num_ppo_epochs",
    "num_mini_batches",
    "local_rollout_forward_batch_size",
    "response_length",
    "per_device_train_batch_size",
)


def main():
    warnings.filterwarnings("ignore")
    served = paired.Served(paired.resident())
    told = json.loads(sys.argv[1])
    torch.set_num_threads(told["threads"])
    folder = told["folder"]
    on_cpu = told["device"] == "cpu"
    dtype = torch.bfloat16 if told["precision"] == "bf16-true" else torch.float32
    tokenizer = AutoTokenizer.from_pretrained(f"{folder}/model", padding_side="left")
    rows = [json.loads(line) for line in Path(f"{folder}/rows.jsonl").read_text().splitlines()]
    texts = [tokenizer.apply_chat_template(row["prompt"], tokenize=False, add_generation_prompt=True) for row in rows]
    ids = [tokenizer(text, add_special_tokens=False)["input_ids"][-told["max_prompt_length"] :] for text in texts]
    config = PPOConfig(
        output_dir=f"{folder}/trl",
        per_device_train_batch_size=told["batch"],
        gradient_accumulation_steps=1,
        total_episodes=told["updates"] * told["batch"],
        num_ppo_epochs=told["inner_epochs"],
        num_mini_batches=1,
        local_rollout_forward_batch_size=told["batch"],
        response_length=told["response_length"],
        temperature=1.0,
        learning_rate=1e-6,
        lr_scheduler_type="constant",
        max_grad_norm=1.0,
        bf16=False,  # the weights are
        use_cpu=on_cpu,
        gradient_checkpointing=False,
        num_sample_generations=0,
        report_to="none",
        save_strategy="no",
        disable_tqdm=True,
        dataloader_pin_memory=not on_cpu,
    )

    def scorer():
        return AutoModelForSequenceClassification.from_pretrained(f"{folder}/reward", num_labels=1, dtype=dtype)

    def policy():
        return AutoModelForCausalLM.from_pretrained(f"{folder}/model", dtype=dtype)

    trainer = PPOTrainer(
        args=config,
        processing_class=tokenizer,
        model=policy(),
        ref_model=policy(),
        reward_model=scorer(),
        value_model=scorer(),
        train_dataset=Dataset.from_dict({"input_ids": ids}),
        eval_dataset=Dataset.from_dict({"input_ids": ids[:1]}),
        callbacks=[Pause(served)],
    )
    trainer.train()


if __name__ == "__main__":
    main()
