"""Whole runs with an adapter: small checkpoints, exact resume, and an export that is a plain model."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer, seed_everything
from lightning.pytorch.callbacks import ModelCheckpoint

from lit_align.data import LabelData, PreferenceData, PromptData, SFTData
from lit_align.errors import UserError
from lit_align.feedback import MiniInstructGold
from lit_align.methods import DPO, KTO, PPO, SFT, RewardModel
from lit_align.models import LoRAConfig, ModelConfig, load_policy, response_logps
from lit_align.models.adapters import without_adapter
from lit_align.rollout import RolloutConfig

pytestmark = pytest.mark.filterwarnings("ignore:The dirpath has changed")
PPO_ONLY = {"reward": MiniInstructGold(), "rollout": RolloutConfig(max_new_tokens=5)}
RUNS = {
    "sft": (SFT, SFTData, {}),
    "reward": (RewardModel, PreferenceData, {}),
    "dpo": (DPO, PreferenceData, {}),
    "kto": (KTO, LabelData, {}),
    "ppo": (PPO, PromptData, PPO_ONLY),
}


@pytest.fixture(scope="module")
def start(tmp_path_factory) -> Path:
    seed_everything(1, verbose=False)
    module = SFT(ModelConfig("mini_instruct", init="random"))
    module.configure_model()
    folder: Path = tmp_path_factory.mktemp("lora") / "start"
    module.export(folder)
    return folder


def run(name: str, start: Path, folder: Path, ckpt_path: Path | None = None) -> LightningModule:
    """Two epochs of two batches, with a checkpoint at every step."""
    method, data, settings = RUNS[name]
    seed_everything(7 if ckpt_path is None else 99, verbose=False)
    module = method(
        policy=ModelConfig(str(start), lora=LoRAConfig(rank=2)),
        optimizer=lambda parameters: torch.optim.AdamW(parameters, lr=1e-2),
        **settings,
    )
    checkpoints = ModelCheckpoint(
        folder / f"from_{ckpt_path and ckpt_path.stem}", "{step}", every_n_train_steps=1, save_top_k=-1
    )
    trainer = Trainer(
        accelerator="cpu", max_epochs=2, logger=False, enable_progress_bar=False, enable_model_summary=False,
        callbacks=[checkpoints], default_root_dir=folder, gradient_clip_val=1.0,
    )  # fmt: skip
    trainer.fit(module, data(train="mini_instruct", max_rows=16, batch_size=8), ckpt_path=ckpt_path)
    return module


@pytest.mark.parametrize("name", RUNS)
def test_a_run_trains_saves_and_resumes_its_adapter_alone(name, start, tmp_path):
    module = run(name, start, tmp_path)
    before = load_policy(ModelConfig(str(start))).model.state_dict()
    model = module.reward_model if name == "reward" else module.policy
    assert all(torch.equal(value, before[key]) for key, value in without_adapter(model).model.state_dict().items())

    found = sorted((tmp_path / "from_None").glob("*.ckpt"))
    assert len(found) == 4
    checkpoint = torch.load(found[0], weights_only=True)
    state = checkpoint["state_dict"]
    part = "reward_model" if name == "reward" else "policy"
    kinds = {key.split(".")[-3] for key in state if key.startswith(part) and "fingerprint" not in key}
    assert kinds <= {"lora_A", "lora_B", "modules_to_save"}
    moments = checkpoint["optimizer_states"][0]["state"].values()
    assert sum(m["exp_avg"].numel() for m in moments) == sum(
        v.numel() for k, v in state.items() if k[-6:] == "weight"
    ) + (1 if name == "ppo" else 0)
    resumed = run(name, start, tmp_path, found[1]).state_dict()
    whole = module.state_dict()
    assert resumed.keys() == whole.keys()
    assert [key for key, value in whole.items() if not torch.equal(resumed[key], value)] == []


def test_the_reference_is_the_policy_without_adapter(start, tmp_path):
    module = run("dpo", start, tmp_path)
    data = PreferenceData("mini_instruct", max_rows=4, batch_size=4, tokenizer=str(start))
    data.setup("fit")
    (batch,) = data.train_dataloader()
    with torch.no_grad(), module.policy.disable_adapter():
        expected = response_logps(module.policy, batch)
    assert torch.equal(module.reference_logps(batch), expected)
    module.export(tmp_path / "model")
    with torch.no_grad():
        exported = response_logps(load_policy(ModelConfig(str(tmp_path / "model"))), batch)
        torch.testing.assert_close(exported, response_logps(module.policy, batch), atol=1e-5, rtol=1e-5)


def test_dropout_of_an_adapter_is_refused_for_ppo(start):
    policy = ModelConfig(str(start), lora=LoRAConfig(dropout=0.1))
    with pytest.raises(UserError, match=r"policy\.lora\.dropout must be 0"):
        PPO(policy, **PPO_ONLY)
