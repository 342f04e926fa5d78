"""SPA with an adapter: the policy of the last round is a second one, the SFT model the weights below both."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer, seed_everything
from lightning.pytorch.callbacks import ModelCheckpoint

from lit_align.data import PreferenceData, PromptData
from lit_align.losses.spa import SelfRefinement
from lit_align.methods import SFT, SPA
from lit_align.methods.spa_stages import SeedPairs
from lit_align.models import LoRAConfig, ModelConfig, load_policy, response_logps
from lit_align.rollout import RolloutConfig

pytestmark = pytest.mark.filterwarnings("ignore:The dirpath has changed")


@pytest.fixture(scope="module")
def start(tmp_path_factory) -> Path:
    seed_everything(1, verbose=False)
    module = SFT(ModelConfig("mini_instruct", init="random"))
    module.configure_model()
    folder: Path = tmp_path_factory.mktemp("spa_lora") / "start"
    module.export(folder)
    return folder


class Watched(SPA):
    """Compares `previous` at every step with a copy of the policy that the stage began with, made by hand."""

    def _begin_round(self) -> None:
        self.at_its_start = [copy.deepcopy(self.policy)]  # a list, or it would be a part of the module
        super()._begin_round()

    def step(self, batch: Any) -> Any:
        if self.at_its_start:
            with torch.no_grad():
                previous, sft = response_logps(self.previous.eval(), batch.batch), self.reference_logps(batch.batch)
                assert torch.equal(previous, response_logps(self.at_its_start[0].eval(), batch.batch))
                policy = response_logps(self.policy, batch.batch)
                with self.policy.disable_adapter():
                    assert torch.equal(sft, response_logps(self.policy, batch.batch))
            self.seen.append([not torch.equal(policy, previous), not torch.equal(previous, sft)])
        return super().step(batch)


def run(start: Path, folder: Path, ckpt_path: Path | None = None) -> SPA:
    """Two steps on the seed, then two in each of two rounds, with a checkpoint at every step."""
    seed_everything(3 if ckpt_path is None else 99, verbose=False)
    module = Watched(
        ModelConfig(str(start), lora=LoRAConfig(rank=2)),
        prompts_per_round=[16, 16],
        seed=SeedPairs(PreferenceData("mini_instruct", max_rows=8, batch_size=8), 2),
        refinement=SelfRefinement(lambdas=(0.5, 0.25), warmup=0.0),
        rollout=RolloutConfig(max_new_tokens=5),
        optimizer=lambda parameters: torch.optim.AdamW(parameters, lr=1e-2),
    )
    module.seen, module.at_its_start = [], []
    keep = ModelCheckpoint(folder / "checkpoints", "{step}", every_n_train_steps=1, save_top_k=-1)
    trainer = Trainer(
        accelerator="cpu", max_epochs=1, logger=False, enable_progress_bar=False, enable_model_summary=False,
        callbacks=[keep], default_root_dir=folder,
    )  # fmt: skip
    data = PromptData("mini_instruct", max_rows=32, batch_size=8)
    trainer.fit(module, data, ckpt_path=ckpt_path, weights_only=None if ckpt_path is None else True)
    return module


def test_a_run_with_two_adapters(start, tmp_path):
    module = run(start, tmp_path / "whole")
    # In the first step of a round the policy is where it began; afterwards all three models differ.
    assert module.seen == [[False, True], [True, True]] * 2
    before = dict(load_policy(ModelConfig(str(start))).named_parameters())
    assert all(map(torch.equal, module.reference_model().parameters(), before.values()))

    whole, own = module.state_dict(), sum(p.numel() for p in module.policy.parameters() if p.requires_grad)
    kinds = {key.split(".")[-3] for key in whole if "fingerprint" not in key}
    assert kinds == {"lora_A", "lora_B"}
    checkpoints = {int(path.stem.split("=")[1]): path for path in (tmp_path / "whole/checkpoints").glob("*.ckpt")}
    assert len(checkpoints) == 6
    saved = torch.load(checkpoints[6], weights_only=True)
    assert sum(t.numel() for key, t in saved["state_dict"].items() if "fingerprint" not in key) == 2 * own

    # The last step of the seed, within round 1, and its last step.
    for step in (2, 3, 4):
        resumed = run(start, tmp_path / str(step), checkpoints[step]).state_dict()
        assert resumed.keys() == whole.keys()
        assert [key for key, value in whole.items() if not torch.equal(resumed[key], value)] == [], step
