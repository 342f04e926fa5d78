"""SPA with sharded weights, saved exactly between two stages: the run that goes on from there is the same to the last bit."""

from __future__ import annotations

from itertools import chain
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, Trainer, seed_everything
from lightning.pytorch.callbacks import ModelCheckpoint
from torch.distributed.tensor import DTensor

from lit_align.data import PreferenceData, PromptData
from lit_align.feedback import MiniInstructGold
from lit_align.losses.spa import SelfRefinement
from lit_align.methods import SFT, SPA
from lit_align.methods.spa_stages import SeedPairs
from lit_align.models import LoRAConfig, ModelConfig
from lit_align.rollout import RolloutConfig
from lit_align.runtime import FSDP2

SMALL = {"hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2, "num_key_value_heads": 2}
BOUNDARIES = {2: "seed to round 1", 4: "round 1 to round 2"}


@pytest.fixture(scope="module")
def start(tmp_path_factory) -> Path:
    seed_everything(1, verbose=False)
    module = SFT(ModelConfig("mini_instruct", init="random", overrides=SMALL))
    module.configure_model()
    folder: Path = tmp_path_factory.mktemp("stages") / "start"
    module.export(folder)
    return folder


class Trace(Callback):
    """Metrics of every optimiser step, by its number."""

    def __init__(self) -> None:
        self.steps: dict[int, dict[str, float]] = {}

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        metrics = {name: float(value) for name, value in trainer.callback_metrics.items() if "/time/" not in name}
        self.steps[trainer.global_step] = metrics


def run(policy: ModelConfig, folder: Path, ckpt_path: Path | None = None) -> dict[str, Any]:
    """Two steps on 9 pairs, which do not share out, and two in each of two rounds; a checkpoint of each step."""
    seed_everything(3 if ckpt_path is None else 99, verbose=False)
    module = SPA(
        policy, prompts_per_round=[16, 16], seed=SeedPairs(PreferenceData("mini_instruct", max_rows=9, batch_size=4), 1),
        refinement=SelfRefinement(lambdas=(0.5, 0.25), warmup=0.0), rollout=RolloutConfig(max_new_tokens=5),
        gold=MiniInstructGold(), keep_rounds=False,
        optimizer=lambda parameters: torch.optim.AdamW(parameters, lr=1e-2),
    )  # fmt: skip
    keep = ModelCheckpoint(folder / "checkpoints", "{step}", every_n_train_steps=2, save_top_k=-1)
    trainer = Trainer(
        accelerator="cpu", devices=2, strategy=FSDP2(), max_epochs=1, logger=False, default_root_dir=folder,
        enable_progress_bar=False, enable_model_summary=False, callbacks=[keep, trace := Trace()],
    )  # fmt: skip
    trainer.fit(module, PromptData("mini_instruct", max_rows=32, batch_size=4), ckpt_path=ckpt_path)
    state = {name: p.full_tensor() if isinstance(p, DTensor) else p for name, p in module.named_parameters()}
    rounds = {path.name: path.read_text() for path in (folder / "rounds").glob("*.jsonl")}
    return {"state": state, "steps": trace.steps, "rounds": rounds, "seen": module._seen}


def whole_and_resumed(start: Path, folder: Path) -> list[tuple[str, int, dict[str, Any], dict[str, Any]]]:
    """For all weights and an adapter: where a run ends, and where the one ends that goes on from each boundary."""
    found = []
    for kind, lora in {"whole": None, "lora": LoRAConfig(rank=2)}.items():
        policy, place = ModelConfig(str(start), lora=lora), folder / kind
        whole = run(policy, place)
        for step in BOUNDARIES:
            checkpoint = place / "checkpoints" / f"step={step}.ckpt"
            found.append((kind, step, whole, run(policy, place / f"from_{step}", checkpoint)))
    return found


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The dirpath has changed")
def test_a_run_goes_on_between_two_stages(start, tmp_path, on_two_ranks):
    for kind, step, whole, resumed in chain.from_iterable(on_two_ranks(whole_and_resumed, start, tmp_path)):
        what = f"{kind}, {BOUNDARIES[step]}"
        assert [metrics["train/round"] for metrics in whole["steps"].values()] == [0, 0, 1, 1, 2, 2], what
        assert resumed["steps"].keys() == set(range(step + 1, 7)), what
        for number, metrics in resumed["steps"].items():
            assert metrics == {name: whole["steps"][number][name] for name in metrics}, (what, number)
        assert resumed["state"].keys() == whole["state"].keys()
        assert [name for name, p in whole["state"].items() if not torch.equal(resumed["state"][name], p)] == [], what
        assert all(map(torch.equal, resumed["seen"], whole["seen"])), what
        assert resumed["rounds"] == {name: whole["rounds"][name] for name in resumed["rounds"]}, what
        assert len(resumed["rounds"]) == (4 if step == 2 else 2), what
