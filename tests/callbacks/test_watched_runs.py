"""A run that is watched by every callback ends where the run ends that is not, to the last bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer, seed_everything

from callbacks import Evaluation, KLMonitor, RewardEval, WinRate
from lit_align.data import PreferenceData
from lit_align.feedback import MiniInstructGold, RewardJudge
from lit_align.methods import DPO, Schedule
from lit_align.models import ModelConfig
from lit_align.rollout import RolloutConfig


def watchers() -> list[Evaluation]:
    """One of each, at steps of their own."""
    common: dict[str, Any] = {"prompts": "mini_instruct", "rollout": RolloutConfig(3), "n_prompts": 3}
    return [
        KLMonitor(every_n_steps=20, k=2, **common),
        WinRate(judge=RewardJudge(MiniInstructGold()), every_n_steps=25, **common),
        RewardEval(reward=MiniInstructGold(), every_n_steps=15, seed=7, **common),
    ]


@pytest.mark.parametrize("method", ["sft", "dpo", pytest.param("ppo", marks=pytest.mark.slow)])
def test_training_does_not_notice(method, fit_small):
    watched, trainer = fit_small(method, watchers(), rows=400, max_steps=50)
    plain, _ = fit_small(method, [], rows=400, max_steps=50)
    assert trainer.global_step == 50
    assert {"eval/kl/full", "eval/win_rate", "eval/reward/mean"} <= trainer.callback_metrics.keys()
    for key, value in plain.state_dict().items():
        assert torch.equal(watched.state_dict()[key], value), key


def dpo_on_a_rank(start: Path, folder: Path) -> list[dict[str, Any]]:
    """Weights and metrics of a watched run and of one that is not."""
    results = []
    for callbacks in (watchers(), []):
        seed_everything(7, verbose=False)
        module = DPO(
            ModelConfig(str(start)),
            optimizer=lambda parameters: torch.optim.AdamW(parameters, lr=1e-2),
            lr_scheduler=Schedule(),
        )
        trainer = Trainer(
            accelerator="cpu", devices=2, strategy="ddp", max_steps=50, logger=False, enable_checkpointing=False,
            enable_progress_bar=False, enable_model_summary=False, default_root_dir=folder, callbacks=callbacks,
        )  # fmt: skip
        trainer.fit(module, PreferenceData(train="mini_instruct", max_rows=400, batch_size=4))
        metrics = {name: float(v) for name, v in trainer.callback_metrics.items() if name.startswith("eval/")}
        results.append(
            {"weights": {key: value.clone() for key, value in module.state_dict().items()}, "metrics": metrics}
        )
    return results


@pytest.mark.slow
def test_nor_does_it_on_two_ranks_which_agree(start, tmp_path, on_two_ranks):
    (watched, plain), (other, _) = on_two_ranks(dpo_on_a_rank, start, tmp_path)
    for key, value in plain["weights"].items():
        assert torch.equal(watched["weights"][key], value), key
    assert watched["metrics"] == other["metrics"]
    assert watched["metrics"]["eval/kl/full"] > 0
