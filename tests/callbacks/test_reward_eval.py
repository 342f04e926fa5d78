from __future__ import annotations

import pytest
import torch

from callbacks import RewardEval
from lit_align.feedback import LengthReward, MiniInstructGold, RewardSource, Scores, WeightedSum
from lit_align.rollout import RolloutConfig


class Counting(RewardSource):
    """Rewards 0, 1, 2, ... in the order of the answers, whatever they are."""

    def __call__(self, answers):
        return Scores(torch.arange(float(len(answers))), {})


def test_mean_and_error_by_hand(fit_small):
    watcher = RewardEval("mini_instruct", Counting(), RolloutConfig(2), every_n_steps=100, n_prompts=3, k=2)
    _, trainer = fit_small("sft", [watcher])
    assert float(trainer.callback_metrics["eval/reward/mean"]) == 2.5
    # Pairs (0, 1), (2, 3), (4, 5): each has variance 1/2.
    assert float(trainer.callback_metrics["eval/reward/std_error"]) == pytest.approx((3 * 0.5 / 2) ** 0.5 / 3)


def test_components_are_logged_by_name(fit_small):
    reward = WeightedSum({"gold": MiniInstructGold(), "length": LengthReward(0, 8)}, {"gold": 1.0, "length": 0.1})
    watcher = RewardEval("mini_instruct", reward, RolloutConfig(4), every_n_steps=5, k=8, name="both")
    _, trainer = fit_small("dpo", [watcher])
    metrics = {name: float(value) for name, value in trainer.callback_metrics.items() if name.startswith("eval/both")}
    total = metrics["eval/both/gold"] + 0.1 * metrics["eval/both/length"]
    assert metrics["eval/both/mean"] == pytest.approx(total, abs=1e-5)
    assert metrics["eval/both/length"] < 0
