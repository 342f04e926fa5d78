"""Two ranks, with whole weights (DDP) or sharded ones (FSDP2), take the steps of one process on rows that do not share out."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything
from lightning.pytorch.strategies import FSDPStrategy, ModelParallelStrategy
from torch.distributed.tensor import DTensor

from lit_align.data import LabelData, PreferenceData, PromptData, RankingData, SFTData
from lit_align.data.mini_instruct import PROMPTS
from lit_align.errors import UserError
from lit_align.feedback import Judge, MiniInstructGold, RewardModelReward
from lit_align.losses.spa import SelfRefinement
from lit_align.methods import DPO, KTO, PPO, RRHF, SFT, SPA, OnlineDPO, RewardModel, Schedule
from lit_align.methods.rrhf import Candidates
from lit_align.methods.spa_stages import SeedPairs
from lit_align.models import LoRAConfig, ModelConfig
from lit_align.rollout import Response, RolloutConfig, RolloutEngine
from lit_align.runtime import FSDP2

SMALL = {"hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2, "num_key_value_heads": 2}
ROWS = 7
ROLLOUT = RolloutConfig(max_new_tokens=5)


class Scripted(RolloutEngine):
    """Says to each prompt what its tokens add up to, so that what is said does not depend on the batch."""

    def sample(self, prompts, k):
        def words(ids, j):
            return [3 + (sum(ids) + 3 * j + t) % 15 for t in range(1 + (len(ids) + j) % 4)]

        return [[Response([*words(ids, j), 1], "eos") for j in range(k)] for ids in prompts]


class FirstWins(Judge):
    def __call__(self, first, second):
        return torch.full((len(first),), 0.7)


def scripted(method: type) -> type:
    """The method, with responses that do not depend on who samples them."""

    class Told(method):
        def configure_model(self) -> None:
            super().configure_model()
            self.engine = Scripted()

    return Told


def sgd(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=0.1)


def build(name: str, policy: ModelConfig, batch: int) -> LightningModule:
    gold, reward = MiniInstructGold(), ModelConfig(str(Path(policy.path).parent / "reward"))
    common: dict[str, Any] = {"policy": policy, "optimizer": sgd, "lr_scheduler": Schedule()}

    def seeded() -> LightningModule:
        seed = SeedPairs(PreferenceData("mini_instruct", max_rows=ROWS, batch_size=batch), 1)
        refinement = SelfRefinement(lambdas=(0.5,), warmup=0.0)
        return scripted(SPA)(
            prompts_per_round=[4], seed=seed, refinement=refinement, keep_rounds=False, rollout=ROLLOUT, **common
        )

    builds: dict[str, Callable[[], LightningModule]] = {
        "sft": lambda: SFT(**common),
        "reward": lambda: RewardModel(**common),
        "dpo": lambda: DPO(**common),
        "kto": lambda: KTO(**common),
        "online_dpo": lambda: scripted(OnlineDPO)(judge=gold, rollout=ROLLOUT, responses_per_prompt=3, **common),
        "ppo": lambda: scripted(PPO)(reward=gold, rollout=ROLLOUT, responses_per_prompt=2, **common),
        "ppo_critic": lambda: scripted(PPO)(
            reward=RewardModelReward(reward, batch_size=2), rollout=ROLLOUT, critic=reward, **common
        ),
        "rrhf": lambda: RRHF(**common),
        "rrhf_online": lambda: scripted(RRHF)(candidates=Candidates(gold, ROLLOUT, 3), **common),
        "spa": lambda: scripted(SPA)(
            prompts_per_round=[4, 4], judge=FirstWins(), keep_rounds=False, rollout=ROLLOUT,
            refinement=SelfRefinement(lambdas=(0.5, 0.25), warmup=0.0), **common,
        ),
        "spa_seed": seeded, "spa_lora": seeded,
    }  # fmt: skip
    return builds[name]()


DATA = {"sft": SFTData, "reward": PreferenceData, "dpo": PreferenceData, "rrhf": RankingData, "kto": LabelData}


def whole(tensors: Iterable[torch.Tensor]) -> list[torch.Tensor]:
    """What is sharded from all ranks, which all have to call."""
    return [(tensor.full_tensor() if isinstance(tensor, DTensor) else tensor).detach().clone() for tensor in tensors]


class Trace(Callback):
    """Metrics of every optimiser step, and the gradients that it was taken with."""

    def __init__(self) -> None:
        self.steps: list[dict[str, float]] = []
        self.gradients: list[torch.Tensor] = []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        self.gradients += whole(p.grad for p in pl_module.parameters() if p.requires_grad)
        metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
        self.steps.append({name: value for name, value in metrics.items() if "/time/" not in name})


def run(name: str, start: Path, folder: Path, batch_size: int, **settings: Any) -> dict[str, Any]:
    """Two epochs of one step each, after which all that is left is on this rank, whole."""
    seed_everything(4, verbose=False)
    # Computing activations anew changes no number.
    policy = ModelConfig(
        str(start), activation_checkpointing=name == "sft" and "strategy" in settings,
        lora=LoRAConfig(rank=2) if name == "spa_lora" else None,
    )  # fmt: skip
    is_spa = name.startswith("spa")
    module = build(name, policy, batch_size)
    rows = {"train": "mini_instruct", "max_rows": ROWS}
    if name not in DATA:
        path = Path(folder) / f"prompts{os.environ.get('RANK', '')}.jsonl"
        prompts = PROMPTS if is_spa else PROMPTS[:ROWS]
        path.write_text("".join(json.dumps({"prompt": prompt}) + "\n" for prompt in prompts))
        rows = {"train": str(path)}
        # Rounds are made of whole batches; the seed takes what does not share out.
        batch_size = 4 // settings.get("devices", 1) if is_spa else batch_size
    trace = Trace()
    trainer = Trainer(
        accelerator="cpu", max_epochs=1 if is_spa else 2, default_root_dir=folder, enable_progress_bar=False,
        enable_model_summary=False, enable_checkpointing=False, logger=False, callbacks=[trace], gradient_clip_val=1.0,
        **settings,
    )  # fmt: skip
    trainer.fit(module, DATA.get(name, PromptData)(**rows, batch_size=batch_size))
    assert trainer.global_step == 2
    parameters = list(module.parameters())
    assert all(isinstance(p, DTensor) for p in parameters) == isinstance(settings.get("strategy"), FSDP2)
    if module._reference is not None:
        reference = list(module._reference.model.parameters())
        assert all(isinstance(p, DTensor) for p in reference) == isinstance(settings.get("strategy"), FSDP2)
    # Where weights are not sharded, adapters share those below, which have no gradient.
    parameters = [p for p in parameters if p.requires_grad or policy.lora is None]
    return {"parameters": whole(parameters), "gradients": trace.gradients, "metrics": trace.steps}


def on_a_rank(names: list[str], strategy: str, start: Path, folder: Path) -> dict[str, Any]:
    sharded = FSDP2 if strategy == "fsdp2" else lambda: strategy
    return {name: run(name, start, folder, (ROWS + 1) // 2, devices=2, strategy=sharded()) for name in names}


@pytest.fixture(scope="module")
def start(tmp_path_factory) -> Path:
    seed_everything(1, verbose=False)
    module = SFT(ModelConfig("mini_instruct", init="random", overrides=SMALL))
    module.configure_model()
    folder: Path = tmp_path_factory.mktemp("sharded") / "start"
    module.export(folder)
    reward = RewardModel(ModelConfig(str(folder)))
    reward.configure_model()
    reward.export(folder.parent / "reward")
    return folder


def assert_two_ranks_equal_one(names: list[str], strategy: str, start: Path, folder: Path, on_two_ranks: Any) -> None:
    of_ranks = on_two_ranks(on_a_rank, names, strategy, start, folder)
    for name in names:
        alone = run(name, start, folder, ROWS + 1)
        for rank in of_ranks:
            for what in ("parameters", "gradients"):
                for a, b in zip(rank[name][what], alone[what], strict=True):
                    torch.testing.assert_close(
                        a, b, atol=1e-6, rtol=1e-5, msg=lambda text, at=(name, what): f"{at}: {text}"
                    )
            for actual, expected in zip(rank[name]["metrics"], alone["metrics"], strict=True):
                assert actual == pytest.approx(expected, abs=1e-6, rel=1e-5), name


def test_sharded_dpo_is_dpo(start, tmp_path, on_two_ranks):
    assert_two_ranks_equal_one(["dpo"], "fsdp2", start, tmp_path, on_two_ranks)


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])
def test_two_ranks_equal_one(strategy, start, tmp_path, on_two_ranks):
    names = [
        "sft",
        "reward",
        "ppo",
        "ppo_critic",
        "rrhf",
        "rrhf_online",
        "spa",
        "spa_seed",
        "spa_lora",
        "dpo",
        "kto",
        "online_dpo",
    ]
    assert_two_ranks_equal_one(names, strategy, start, tmp_path, on_two_ranks)


@pytest.mark.parametrize("strategy", [FSDPStrategy, ModelParallelStrategy])
def test_other_sharding_is_refused(strategy, start):
    module = SFT(ModelConfig(str(start)))
    trainer = Trainer(accelerator="cpu", logger=False)
    trainer._accelerator_connector.strategy = strategy()
    module.trainer = trainer
    with pytest.raises(UserError, match=r"is not supported: set trainer\.strategy to fsdp2"):
        module.setup("fit")
