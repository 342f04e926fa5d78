"""Short runs of small models on mini_instruct, to be watched."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer, seed_everything

from lit_align.data import PreferenceData, PromptData, SFTData
from lit_align.feedback import MiniInstructGold
from lit_align.methods import DPO, PPO, SFT, Schedule
from lit_align.models import ModelConfig
from lit_align.rollout import RolloutConfig

SMALL = {"hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2, "num_key_value_heads": 2}


def fit(
    start: Path, folder: Path, method: str, callbacks: list[Any], rows: int = 40, ckpt_path: Any = None, **trainer: Any
) -> tuple[LightningModule, Trainer]:
    """Five steps of eight rows each unless told otherwise, from a model in a folder."""
    seed_everything(7, verbose=False)
    common = {
        "policy": ModelConfig(str(start), dropout=0.1 if method == "sft" else 0.0),
        "optimizer": lambda parameters: torch.optim.AdamW(parameters, lr=1e-2),
        "lr_scheduler": Schedule(),
    }
    data: Any
    module: LightningModule
    if method == "ppo":
        module = PPO(
            reward=MiniInstructGold(), rollout=RolloutConfig(3), responses_per_prompt=2, minibatches=2, **common
        )
        data = PromptData(train="mini_instruct", max_rows=rows, batch_size=4)
    elif method == "sft":
        module, data = SFT(**common), SFTData(train="mini_instruct", max_rows=rows, batch_size=8)
    else:
        module, data = DPO(**common), PreferenceData(train="mini_instruct", max_rows=rows, batch_size=8)
    settings = {"max_epochs": 1, "logger": False, "enable_checkpointing": False} | trainer
    fitted = Trainer(
        accelerator="cpu", enable_progress_bar=False, enable_model_summary=False, default_root_dir=folder,
        callbacks=callbacks, **settings,
    )  # fmt: skip
    fitted.fit(module, data, ckpt_path=ckpt_path, weights_only=None if ckpt_path is None else True)
    return module, fitted


@pytest.fixture(scope="session")
def start(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an untrained policy."""
    seed_everything(1, verbose=False)
    module = SFT(ModelConfig("mini_instruct", init="random", overrides=SMALL))
    module.configure_model()
    module.export(folder := tmp_path_factory.mktemp("start") / "model")
    return folder


@pytest.fixture
def fit_small(start: Path, tmp_path: Path) -> Callable[..., tuple[LightningModule, Trainer]]:
    """`fit` from `start`, in a folder of its own."""
    return lambda *args, **settings: fit(start, tmp_path, *args, **settings)
