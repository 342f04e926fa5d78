"""A run that goes on from any of its checkpoints ends where the run that was never stopped ended, to the last bit."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer, seed_everything
from lightning.pytorch.callbacks import ModelCheckpoint

from lit_align.data import LabelData, PreferenceData, RankingData, SFTData
from lit_align.errors import UserError
from lit_align.methods import DPO, KTO, SFT, RewardModel, Schedule
from lit_align.models import ModelConfig

# Resumed runs write their checkpoints elsewhere, so that they do not replace those they start from.
pytestmark = pytest.mark.filterwarnings("ignore:The dirpath has changed")

SMALL = {"hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2, "num_key_value_heads": 2}
RUNS = {
    "sft": (SFT, SFTData, 0.1),  # dropout draws random numbers at every step
    "reward": (RewardModel, RankingData, 0.0),
    "dpo": (DPO, PreferenceData, 0.0),
    "kto": (KTO, LabelData, 0.0),
}


def run(
    name: str, folder: Path, ckpt_path: Path | None = None, start: Path | None = None, rows: int = 30
) -> LightningModule:
    """Two epochs of four batches, two of them accumulated, with validation between, and a checkpoint at every step."""
    method, data, dropout = RUNS[name]
    seed_everything(7 if ckpt_path is None else 99, verbose=False)
    if start is None:
        policy = ModelConfig("mini_instruct", init="random", overrides=SMALL, dropout=dropout)
    else:
        policy = ModelConfig(str(start), dropout=dropout)
    module = method(
        policy=policy,
        optimizer=lambda parameters: torch.optim.AdamW(parameters, lr=1e-2),
        lr_scheduler=Schedule(warmup=0.3, decay="cosine"),
    )
    checkpoints = ModelCheckpoint(
        folder / f"from_{ckpt_path and ckpt_path.stem}", filename="{step}", every_n_train_steps=1, save_top_k=-1
    )
    trainer = Trainer(
        accelerator="cpu", max_epochs=2, accumulate_grad_batches=2, gradient_clip_val=1.0, val_check_interval=0.5,
        logger=False, enable_progress_bar=False, enable_model_summary=False,
        callbacks=[checkpoints],
    )  # fmt: skip
    rows_of = data(train="mini_instruct", val="mini_instruct", max_rows=rows, batch_size=8, val_batch_size=1000)
    trainer.fit(module, rows_of, ckpt_path=ckpt_path, weights_only=None if ckpt_path is None else True)
    return module


@pytest.fixture
def start(tmp_path: Path) -> Path:
    """Weights on disk, so that the reference of a resumed run is that of the first one."""
    seed_everything(1, verbose=False)
    module = SFT(ModelConfig("mini_instruct", init="random", overrides=SMALL))
    module.configure_model()
    module.export(tmp_path / "start")
    return tmp_path / "start"


@pytest.mark.parametrize("name", RUNS)
def test_every_checkpoint_leads_to_the_same_end(name, tmp_path, start):
    whole = run(name, tmp_path / "checkpoints", start=start).state_dict()
    found = sorted((tmp_path / "checkpoints" / "from_None").glob("*.ckpt"))
    assert len(found) == 4
    for checkpoint in found:
        resumed = run(name, tmp_path, checkpoint, start=start).state_dict()
        assert resumed.keys() == whole.keys()
        for key, value in whole.items():
            assert torch.equal(resumed[key], value), f"{checkpoint.name}: {key}"


def test_a_resumed_run_is_resumed_again(tmp_path, start):
    """From every checkpoint of runs that went on from every checkpoint, that of an epoch's last step among them."""
    whole = run("dpo", tmp_path / "whole", start=start)
    for first in range(1, 4):
        run("dpo", tmp_path / str(first), tmp_path / "whole" / "from_None" / f"step={first}.ckpt", start=start)
        for second in range(first + 1, 4):
            checkpoint = tmp_path / str(first) / f"from_step={first}" / f"step={second}.ckpt"
            resumed = run("dpo", tmp_path / "again" / str(first), checkpoint, start=start)
            assert resumed.trainer.global_step == whole.trainer.global_step == 4, (first, second)
            for key, value in whole.state_dict().items():
                assert torch.equal(resumed.state_dict()[key], value), (first, second, key)


def test_frozen_models_are_in_no_checkpoint(tmp_path, start):
    run("dpo", tmp_path / "checkpoints", start=start)
    checkpoint = torch.load(next((tmp_path / "checkpoints").rglob("*.ckpt")), weights_only=True)
    assert all(key.startswith("policy.") for key in checkpoint["state_dict"])


def test_another_reference_is_refused(tmp_path, start):
    run("dpo", tmp_path / "checkpoints", start=start)
    checkpoint = next((tmp_path / "checkpoints").rglob("*.ckpt"))
    with pytest.raises(UserError, match="another reference model"):
        run("dpo", tmp_path, checkpoint)


def test_other_data_are_refused(tmp_path, start):
    run("sft", tmp_path / "checkpoints", start=start)
    checkpoint = next((tmp_path / "checkpoints").rglob("*.ckpt"))
    with pytest.raises(UserError):
        run("sft", tmp_path, checkpoint, start=start, rows=29)
