"""Whether `callbacks.OveroptimisationWatch` speaks when it should: runs that go too far, and runs that do not.

    python -m benchmarks.watch --policy runs/quickstart/sft/model --seeds 100 101 102 103 104

Each seed gives three runs from the same reference. `proxy`: PPO under the linear proxy, misspecified on purpose, with a KL
penalty too small to hold it (as `benchmarks.overoptimisation`). `gold`: PPO under the gold score, which cannot be followed too
far. `dpo`: DPO on pairs that gold orders, with the proxy watched. The watch sees the reward that is followed and never gold;
beside it, gold is measured on 4,096 samples. A run has lost gold at the first measurement where it is below its peak by a
tenth of what it had gained. Writes `<out>/watch.json` and prints one row a run.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything

from callbacks import OveroptimisationWatch
from callbacks.base import quiet
from lit_align.data import PreferenceData, PromptData
from lit_align.data.mini_instruct import PROMPTS
from lit_align.feedback import (
    LinearProxy,
    MiniInstructGold,
    MissingEOSPenalty,
    RewardSource,
    WeightedSum,
    sample_answers,
)
from lit_align.losses import DPO as DPOLoss
from lit_align.losses import FixedKL
from lit_align.methods import DPO, PPO, Schedule
from lit_align.models import ModelConfig
from lit_align.rollout import RolloutConfig

ROLLOUTS = 48
ROLLOUT = RolloutConfig(max_new_tokens=5)
BETAS = {"proxy": 0.05, "gold": 0.3}
PER_PROMPT = 512
LOST = 0.1
LEAST_GAIN = 0.2
"""What gold has to have gained before a tenth of it is more than noise."""


def main() -> None:
    """Runs and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--policy", default="runs/quickstart/sft/model", help="The reference: an exported SFT model.")
    parser.add_argument("--out", type=Path, default=Path("runs/watch"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--kinds", nargs="+", default=["proxy", "gold", "dpo"])
    given = parser.parse_args()
    torch.set_num_threads(1)
    results = []
    for kind in given.kinds:
        for seed in given.seeds:
            results.append(study(kind, seed, ModelConfig(given.policy)))
            print({name: value for name, value in results[-1].items() if name != "points"}, flush=True)
    given.out.mkdir(parents=True, exist_ok=True)
    (given.out / "watch.json").write_text(json.dumps(results, indent=2) + "\n")


class Watched(Callback):
    """Notes what the watch said, and beside it what the policy is worth.

    Args:
        every: Optimiser steps between two measurements, as the watch's.
    """

    def __init__(self, every: int) -> None:
        self.every = every
        self.points: list[dict[str, float]] = []

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The reference."""
        self.look(trainer, pl_module)

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *batch: Any) -> None:
        """Whenever the watch has looked."""
        if trainer.global_step % self.every == 0:
            self.look(trainer, pl_module)

    def look(self, trainer: Trainer, module: LightningModule) -> None:
        """Adds a point."""
        with quiet(trainer, module, seed=1):
            answers = sample_answers(module.policy, module.tokenizer, PROMPTS, PER_PROMPT, ROLLOUT)
        seen = {k.removeprefix("eval/watch/"): float(v) for k, v in trainer.callback_metrics.items() if "/watch/" in k}
        gold = MiniInstructGold()(answers).total.double().mean().item()
        self.points.append({"step": trainer.global_step, "gold": gold, **seen})


def study(kind: str, seed: int, config: ModelConfig) -> dict[str, Any]:
    """One watched run, and when it spoke and when gold was lost."""
    reward: RewardSource = MiniInstructGold() if kind == "gold" else LinearProxy()
    every = 50 if kind == "dpo" else 16
    watched = Watched(every)
    watch = OveroptimisationWatch("mini_instruct", reward, ROLLOUT, every, n_prompts=8, k=32)
    seed_everything(seed, verbose=False)
    module, data = dpo(config, seed) if kind == "dpo" else ppo(config, seed, reward, BETAS[kind])
    trainer = Trainer(
        accelerator="cpu",
        max_epochs=5 if kind == "dpo" else 1,
        gradient_clip_val=1.0,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[watch, watched],
    )
    trainer.fit(module, data)
    return {"kind": kind, "seed": seed, **outcome(watched.points), "points": watched.points}


def ppo(config: ModelConfig, seed: int, reward: RewardSource, beta: float) -> tuple[LightningModule, Any]:
    """PPO on a reward, and on ending by itself."""
    module = PPO(
        config,
        reward=WeightedSum({"reward": reward, "cut": MissingEOSPenalty(5.0)}, {"reward": 1.0, "cut": 1.0}),
        rollout=ROLLOUT,
        kl=FixedKL(beta),
        inner_epochs=2,
        minibatches=4,
        optimizer=lambda groups: torch.optim.AdamW(groups, lr=1e-4, weight_decay=0.0, eps=1e-5),
    )
    return module, PromptData("mini_instruct", max_rows=256 * ROLLOUTS, batch_size=256, seed=seed)


def dpo(config: ModelConfig, seed: int) -> tuple[LightningModule, Any]:
    """DPO as in the quickstart."""
    module = DPO(
        config,
        loss=DPOLoss(beta=1.0),
        optimizer=lambda groups: torch.optim.AdamW(groups, lr=1e-3, weight_decay=0.0),
        lr_scheduler=Schedule(warmup=0.1, decay="linear"),
    )
    return module, PreferenceData("mini_instruct", max_rows=10_000, batch_size=64, seed=seed)


def outcome(points: list[dict[str, float]]) -> dict[str, Any]:
    """When the watch spoke, when a tenth of the peak gain in gold was lost, and how much gold there was; steps or None."""
    start, peak, lost = points[0]["gold"], points[0]["gold"], None
    for point in points:
        peak = max(peak, point["gold"])
        if lost is None and peak - start > LEAST_GAIN and point["gold"] < peak - LOST * (peak - start):
            lost = int(point["step"])
    spoke = next((int(point["step"]) for point in points if point["parted"]), None)
    at = next((point["gold"] for point in points if point["step"] == spoke), None)
    shift = max(abs(value) for point in points for name, value in point.items() if name.endswith("_shift"))
    return {
        "spoke": spoke,
        "gold_there": at,
        "lost": lost,
        "peak": peak,
        "end": points[-1]["gold"],
        "largest_shift": shift,
    }


if __name__ == "__main__":
    main()
