"""Our side of `benchmarks.dpo`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from benchmarks.sides.training import adamw, train
from lit_align.data import PreferenceData
from lit_align.losses import DPO as DPOLoss
from lit_align.methods import DPO, Schedule
from lit_align.models import CachedReference, FrozenReference, ModelConfig


def build(told: Mapping[str, Any]) -> tuple[DPO, PreferenceData]:
    """The module and its data."""
    folder = told["folder"]
    module = DPO(
        ModelConfig(f"{folder}/model"),
        DPOLoss(beta=0.1),
        reference=FrozenReference() if told["reference"] == "frozen" else CachedReference(f"{folder}/cache"),
        optimizer=adamw,
        lr_scheduler=Schedule(),
    )
    data = PreferenceData(
        f"{folder}/rows.jsonl",
        batch_size=told["batch"],
        max_length=told["max_length"],
        layout=told["layout"],
        tokens_per_row=told["tokens_per_row"],
    )
    return module, data


if __name__ == "__main__":
    train(build)
