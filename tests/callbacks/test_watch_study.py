"""One run that goes too far and one that does not, as `benchmarks/watch.py` has them, from an SFT model made here."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from lightning.pytorch import Trainer, seed_everything

from benchmarks.watch import study
from lit_align.data import SFTData
from lit_align.methods import SFT, Schedule
from lit_align.models import ModelConfig

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> ModelConfig:
    """As the quickstart's `sft.yaml` makes it, in half the steps."""
    seed_everything(42, verbose=False)
    module = SFT(
        ModelConfig("mini_instruct", init="random"),
        optimizer=lambda parameters: torch.optim.AdamW(parameters, lr=3e-3, weight_decay=0.0),
        lr_scheduler=Schedule(warmup=0.05, decay="cosine", final=0.1),
    )
    quiet = {
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    trainer = Trainer(accelerator="cpu", max_epochs=5, gradient_clip_val=1.0, **quiet)
    trainer.fit(module, SFTData("mini_instruct", max_rows=10_000, batch_size=128))
    folder: Path = tmp_path_factory.mktemp("reference") / "model"
    module.export(folder)
    return ModelConfig(str(folder))


@pytest.mark.filterwarnings("ignore:The policy may be following")
def test_it_speaks_before_gold_is_lost(reference):
    result = study("proxy", 0, reference)
    assert result["spoke"] is not None
    assert result["lost"] is None or result["spoke"] < result["lost"]
    assert result["points"][-1]["proxy"] > result["points"][0]["proxy"] + 2


def test_it_is_silent_where_gold_itself_is_followed(reference):
    result = study("gold", 0, reference)
    assert result["spoke"] is None
    assert result["end"] > result["points"][0]["gold"] + 1
