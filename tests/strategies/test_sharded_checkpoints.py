"""Checkpoints of sharded runs: in parts and in one file, resumed and exported; with an adapter only what is trained."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from lightning.pytorch import Trainer, seed_everything
from lightning.pytorch.callbacks import ModelCheckpoint
from torch.distributed.checkpoint import FileSystemReader
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from torch.distributed.tensor import DTensor

from lit_align.commands.export import export
from lit_align.data import PreferenceData
from lit_align.errors import UserError
from lit_align.methods import DPO, SFT
from lit_align.models import LoRAConfig, ModelConfig, load_policy
from lit_align.runtime import FSDP2

pytestmark = pytest.mark.filterwarnings("ignore:The dirpath has changed", "ignore:Checkpoint directory .* exists")


@pytest.fixture(scope="module")
def start(tmp_path_factory) -> Path:
    seed_everything(1, verbose=False)
    module = SFT(ModelConfig("mini_instruct", init="random"))
    module.configure_model()
    folder: Path = tmp_path_factory.mktemp("shards") / "start"
    module.export(folder)
    return folder


def run(policy: ModelConfig, folder: Path, in_parts: bool, ckpt_path: Path | None = None) -> dict[str, torch.Tensor]:
    """Two steps of DPO on two ranks, with a checkpoint of each in `checkpoints/`, and the model in `model/`."""
    seed_everything(4, verbose=False)
    module = DPO(policy, optimizer=lambda parameters: torch.optim.AdamW(parameters, lr=1e-2))
    saver = ModelCheckpoint(folder / "checkpoints", "{step}", every_n_train_steps=1, save_top_k=-1)
    trainer = Trainer(
        accelerator="cpu", devices=2, strategy=FSDP2(save_distributed_checkpoint=in_parts), max_epochs=1, logger=False,
        enable_progress_bar=False, enable_model_summary=False, callbacks=[saver], default_root_dir=folder,
    )  # fmt: skip
    trainer.fit(module, PreferenceData("mini_instruct", max_rows=15, batch_size=4), ckpt_path=ckpt_path)
    module.export(folder / "model")
    state = trainer.strategy.lightning_module_state_dict() if in_parts else module.state_dict()
    return {key: v.full_tensor().clone() if isinstance(v, DTensor) else v for key, v in state.items()}


def train_and_resume(start: Path, folder: Path) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """For whole weights and an adapter, in parts and in one file: where a run ends, and where one that was resumed does."""
    ends = []
    for lora in (None, LoRAConfig(rank=2)):
        for in_parts in (True, False):
            policy = ModelConfig(str(start), lora=lora)
            place = folder / f"{'lora' if lora else 'whole'}_{'parts' if in_parts else 'file'}"
            whole = run(policy, place, in_parts)
            resumed = run(policy, place / "resumed", in_parts, place / "checkpoints" / "step=1.ckpt")
            ends.append((whole, resumed))
    return ends


def write_config(folder: Path, start: Path, lora: bool) -> None:
    policy = {"path": str(start)} | ({"lora": {"rank": 2}} if lora else {})
    config = {"model": {"class_path": "lit_align.methods.DPO", "init_args": {"policy": policy}}}
    (folder / "config.yaml").write_text(yaml.safe_dump(config))


@pytest.mark.slow
def test_a_sharded_run_resumes_and_exports(start, tmp_path, on_two_ranks):
    for of_rank in on_two_ranks(train_and_resume, start, tmp_path):
        for whole, resumed in of_rank:
            assert whole.keys() == resumed.keys()
            assert [key for key in whole if not torch.equal(whole[key], resumed[key])] == []
    ids = torch.tensor([[3, 4, 5, 6]])
    for folder in tmp_path.glob("*_*"):
        write_config(folder, start, lora="lora" in folder.name)
        export(folder, folder / "exported", ckpt="step=2.ckpt")
        with torch.no_grad():
            expected = load_policy(ModelConfig(str(folder / "model")))(input_ids=ids).logits
            actual = load_policy(ModelConfig(str(folder / "exported")))(input_ids=ids).logits
        assert torch.equal(actual, expected)
    model = load_policy(ModelConfig(str(start), lora=LoRAConfig(rank=2)))
    trained = [p.numel() for p in model.parameters() if p.requires_grad]
    # Weights and two moments; besides, a number of steps for each, and the fingerprint of what is frozen.
    in_parts = FileSystemReader(tmp_path / "lora_parts" / "checkpoints" / "step=2.ckpt").read_metadata()
    tensors = [m.size.numel() for m in in_parts.state_dict_metadata.values() if isinstance(m, TensorStorageMetadata)]
    assert sum(tensors) == 3 * sum(trained) + len(trained) + len(model.base_fingerprint) // 2
    in_one = (tmp_path / "lora_file" / "checkpoints" / "step=2.ckpt").stat().st_size
    assert in_one < 4 * sum(tensors) + 80_000


def test_a_folder_without_an_index_is_refused(start, tmp_path):
    run = tmp_path / "run"
    (run / "checkpoints" / "bad.ckpt").mkdir(parents=True)
    torch.save({}, run / "checkpoints" / "bad.ckpt" / "meta.pt")
    write_config(run, start, lora=False)
    with pytest.raises(UserError, match=r"bad\.ckpt is no folder of shards as FSDP2 writes it"):
        export(run, tmp_path / "out", ckpt="bad.ckpt")
