"""Callbacks that run models, on two ranks with sharded weights and prompts that do not share out: as in one process."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, Trainer, seed_everything

import callbacks.prompts
from callbacks import (
    AlignmentTax,
    KLMonitor,
    OveroptimisationWatch,
    RewardEval,
    RewardModelReport,
    SampleTable,
    WinRate,
)
from lit_align.data import PreferenceData, SFTData
from lit_align.errors import UserError
from lit_align.feedback import RewardJudge, RewardModelReward, sample_answers
from lit_align.feedback.source import decoded_answers
from lit_align.methods import DPO, SFT, RewardModel, Schedule
from lit_align.models import LoRAConfig, ModelConfig
from lit_align.rollout import Response, RolloutConfig
from lit_align.runtime import FSDP2

SMALL = {"hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2, "num_key_value_heads": 2}
ROWS = 7
ROLLOUT = RolloutConfig(max_new_tokens=5)


def scripted(model: Any, tokenizer: Any, prompts: Any, k: int, *settings: Any) -> Any:
    """Samples, and then says something else: what is sampled depends on how many ranks there are."""
    sampled = sample_answers(model, tokenizer, prompts, k, *settings)
    ids = [answer.prompt_ids for answer in sampled[::k]]

    def words(of_prompt: list[int], j: int) -> list[int]:
        return [*(3 + (sum(of_prompt) + 3 * j + t) % 15 for t in range(1 + (len(of_prompt) + j) % 4)), 1]

    said = [[Response(words(of_prompt, j), "eos") for j in range(k)] for of_prompt in ids]
    return decoded_answers(tokenizer, prompts, ids, said)


class Metrics(Callback):
    """What every callback has measured when the run ends."""

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        self.found = {name: float(value) for name, value in trainer.callback_metrics.items() if "time" not in name}


def watching(reward: Path, exact: bool) -> list[Callback]:
    source, every = RewardModelReward(ModelConfig(str(reward)), batch_size=2), {"every_n_steps": 2, "n_prompts": 3}
    prompts = {"prompts": "mini_instruct", "rollout": ROLLOUT}
    return [
        KLMonitor(**prompts, k=2, exact=exact, at_start=not exact, batch_size=2, **every),
        SampleTable(**prompts, reward=source, k=2, **every),
        WinRate(**prompts, judge=RewardJudge(source), k=2, **every),
        RewardEval(**prompts, reward=source, k=2, **every),
        OveroptimisationWatch(**prompts, proxy=source, limit=100, k=2, **every),
        AlignmentTax("mini_instruct", every_n_steps=2, n_texts=3, max_response_length=5),
    ]


def run(name: str, start: Path, folder: Path, batch_size: int, **trainer: Any) -> dict[str, float]:
    """Two optimiser steps, on all rows each."""
    seed_everything(4, verbose=False)
    reward = start.parent / "reward"
    method, rows = {"sft": (SFT, SFTData), "dpo": (DPO, PreferenceData), "reward": (RewardModel, PreferenceData)}[
        name.removesuffix("_lora")
    ]
    module = method(
        policy=ModelConfig(str(start), lora=LoRAConfig(rank=2) if name.endswith("_lora") else None),
        optimizer=lambda parameters: torch.optim.SGD(parameters, lr=1.0), lr_scheduler=Schedule(),
    )  # fmt: skip
    report: list[Callback] = [RewardModelReport(other=ModelConfig(str(reward)))]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(callbacks.prompts, "sample_answers", scripted)
        fit = Trainer(
            accelerator="cpu", max_epochs=2, logger=False, enable_checkpointing=False, enable_progress_bar=False,
            enable_model_summary=False, default_root_dir=folder, num_sanity_val_steps=0,
            callbacks=[*(report if name == "reward" else watching(reward, name == "sft")), found := Metrics()], **trainer,
        )  # fmt: skip
        data = rows(
            "mini_instruct", val="mini_instruct", max_rows=ROWS, batch_size=batch_size, val_batch_size=batch_size
        )
        fit.fit(module, data)
    return found.found


def on_a_rank(names: list[str], start: Path, folder: Path) -> dict[str, dict[str, float]]:
    return {name: run(name, start, folder, (ROWS + 1) // 2, devices=2, strategy=FSDP2()) for name in names}


@pytest.fixture(scope="module")
def start(tmp_path_factory) -> Path:
    seed_everything(1, verbose=False)
    module = SFT(ModelConfig("mini_instruct", init="random", overrides=SMALL))
    module.configure_model()
    folder: Path = tmp_path_factory.mktemp("watched") / "start"
    module.export(folder)
    reward = RewardModel(ModelConfig(str(folder)))
    reward.configure_model()
    reward.export(folder.parent / "reward")
    return folder


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The policy puts")  # untrained, it often does not end in time
def test_two_ranks_measure_what_one_does(start, tmp_path, on_two_ranks):
    names = ["sft", "sft_lora", "dpo", "reward"]
    of_ranks = on_two_ranks(on_a_rank, names, start, tmp_path)
    for name in names:
        alone = run(name, start, tmp_path, ROWS + 1)
        measured = {metric.split("/")[1] for metric in alone if metric.startswith("eval/")}
        assert measured == ({"reward_model"} if name == "reward" else {"kl", "win_rate", "reward", "watch", "tax"})
        if name != "reward":
            assert alone["eval/kl/full"] > 1e-3
        for rank in of_ranks:
            assert rank[name] == pytest.approx(alone, abs=1e-5, rel=1e-5), name


def refused(start: Path, folder: Path) -> str:
    module = SFT(ModelConfig("mini_instruct", init="random", overrides=SMALL))
    fit = Trainer(
        accelerator="cpu", devices=2, strategy=FSDP2(), logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, callbacks=[KLMonitor("mini_instruct", ROLLOUT, every_n_steps=1)],
    )  # fmt: skip
    with pytest.raises(UserError) as error:
        fit.fit(module, SFTData("mini_instruct", max_rows=ROWS, batch_size=4))
    return str(error.value)


@pytest.mark.slow
def test_what_the_run_started_from_must_be_found(start, tmp_path, on_two_ranks):
    for sentence in on_two_ranks(refused, start, tmp_path):
        assert "SFT has no reference, and a sharded run cannot find it again" in sentence
