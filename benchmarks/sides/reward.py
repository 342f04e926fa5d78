"""Our side of `benchmarks.reward`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from benchmarks.sides.training import adamw, train
from lit_align.data import RankingData
from lit_align.losses import KWise
from lit_align.methods import RewardModel, Schedule
from lit_align.models import ModelConfig


def build(told: Mapping[str, Any]) -> tuple[RewardModel, RankingData]:
    """The module and its data."""
    folder = told["folder"]
    module = RewardModel(ModelConfig(f"{folder}/model"), KWise(), optimizer=adamw, lr_scheduler=Schedule())
    data = RankingData(
        f"{folder}/rows.jsonl", batch_size=told["batch"], max_length=told["max_length"], layout=told["layout"]
    )
    return module, data


if __name__ == "__main__":
    train(build)
