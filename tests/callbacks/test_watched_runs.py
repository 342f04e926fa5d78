"""A run that is watched by every callback ends where the run ends that is not, to the last bit; and what it leaves behind."""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest
import torch
import wandb
from lightning.pytorch import Callback, Trainer, seed_everything
from lightning.pytorch.callbacks import ModelCheckpoint

import callbacks
from callbacks import (
    AlignmentTax,
    Evaluation,
    KLMonitor,
    MemoryMonitor,
    OveroptimisationWatch,
    RewardEval,
    SampleTable,
    SpendTime,
    WinRate,
)
from lit_align.data import PreferenceData
from lit_align.feedback import MiniInstructGold, RewardJudge
from lit_align.methods import DPO, Schedule
from lit_align.models import ModelConfig
from lit_align.rollout import RolloutConfig
from lit_align.runtime.loggers import RunWandbLogger

# A policy that has hardly been trained may well be said to go too far.
pytestmark = pytest.mark.filterwarnings("ignore:The policy may be following", "ignore:The dirpath has changed")

MACHINES = ("tokens_per_second", "mfu", "matrix_rate", "peak", "time")
"""Parts of the names of metrics that no two runs have alike."""


def watchers() -> list[Evaluation]:
    """One of each, at steps of their own."""
    common: dict[str, Any] = {"prompts": "mini_instruct", "rollout": RolloutConfig(3), "n_prompts": 3}
    gold = MiniInstructGold()
    return [
        KLMonitor(every_n_steps=20, k=2, **common),
        WinRate(judge=RewardJudge(gold), every_n_steps=25, **common),
        RewardEval(reward=gold, every_n_steps=15, seed=7, **common),
        SampleTable(every_n_steps=22, reward=gold, **common),
        OveroptimisationWatch(proxy=gold, held_out=gold, every_n_steps=16, k=2, **common),
        AlignmentTax("mini_instruct", every_n_steps=18, n_texts=5),
        MemoryMonitor(every_n_steps=12),
        SpendTime(every_n_steps=14),
    ]


def test_there_is_one_of_each():
    every = {getattr(callbacks, name) for name in callbacks.__all__}
    # A report on a reward model is made at validation, by a module that has no policy.
    assert {type(watcher) for watcher in watchers()} == every - {Evaluation, callbacks.RewardModelReport}


@pytest.mark.parametrize(
    "method", ["dpo", pytest.param("sft", marks=pytest.mark.slow), pytest.param("ppo", marks=pytest.mark.slow)]
)
def test_training_does_not_notice(method, fit_small):
    watched, trainer = fit_small(method, watchers(), rows=400, max_steps=50)
    plain, _ = fit_small(method, [], rows=400, max_steps=50)
    assert trainer.global_step == 50
    assert {"eval/kl/full", "eval/win_rate", "eval/reward/mean", "eval/watch/length"} <= trainer.callback_metrics.keys()
    assert {"eval/tax/perplexity", "eval/memory/mfu", "eval/time/update"} <= trainer.callback_metrics.keys()
    for key, value in plain.state_dict().items():
        assert torch.equal(watched.state_dict()[key], value), key


def dpo_on_a_rank(start: Path, folder: Path) -> list[dict[str, Any]]:
    """Weights and metrics of a watched run and of one that is not."""
    results = []
    for watched_by in (watchers(), []):
        seed_everything(7, verbose=False)
        module = DPO(
            ModelConfig(str(start)),
            optimizer=lambda parameters: torch.optim.AdamW(parameters, lr=1e-2),
            lr_scheduler=Schedule(),
        )
        trainer = Trainer(
            accelerator="cpu", devices=2, strategy="ddp", max_steps=50, logger=False, enable_checkpointing=False,
            enable_progress_bar=False, enable_model_summary=False, default_root_dir=folder, callbacks=watched_by,
        )  # fmt: skip
        trainer.fit(module, PreferenceData(train="mini_instruct", max_rows=400, batch_size=4))
        metrics = {name: float(v) for name, v in trainer.callback_metrics.items() if name.startswith("eval/")}
        results.append(
            {"weights": {key: value.clone() for key, value in module.state_dict().items()}, "metrics": metrics}
        )
    return results


@pytest.mark.slow
def test_nor_does_it_on_two_ranks_which_agree(start, tmp_path, on_two_ranks):
    (watched, plain), (other, _) = on_two_ranks(dpo_on_a_rank, start, tmp_path)
    for key, value in plain["weights"].items():
        assert torch.equal(watched["weights"][key], value), key
    assert watched["metrics"] == other["metrics"]
    assert watched["metrics"]["eval/kl/full"] > 0
    assert watched["metrics"]["eval/memory/tokens_per_second"] > 0


def of_every_step(every: int = 2) -> list[Any]:
    """All watchers, at the same steps."""
    everyone = watchers()
    for watcher in everyone:
        watcher.every_n_steps = every
    return everyone


def test_what_a_callback_knows_survives_a_kill(fit_small, tmp_path):
    """A run that goes on from its second step measures what the whole run measured, and ends with the same state."""

    def fit(folder: str, ckpt_path: Path | None = None) -> tuple[list[Callback], dict[str, float]]:
        everyone = of_every_step()
        saving = ModelCheckpoint(tmp_path / folder, filename="{step}", every_n_train_steps=2, save_top_k=-1)
        _, trainer = fit_small("dpo", [*everyone, saving], enable_checkpointing=True, ckpt_path=ckpt_path)
        metrics = {name: float(value) for name, value in trainer.callback_metrics.items() if name.startswith("eval/")}
        return everyone, {n: v for n, v in metrics.items() if not any(part in n for part in MACHINES)}

    whole, expected = fit("first")
    resumed, found = fit("second", tmp_path / "first" / "step=2.ckpt")
    assert found == expected
    for before, after in zip(whole, resumed, strict=True):
        assert before.state_dict() == after.state_dict(), type(before)
        assert before.state_dict()["last_step"] == 4


def test_the_checkpoint_with_the_best_reward_is_the_one_that_is_kept(fit_small, tmp_path):
    measured = []

    class Noted(RewardEval):
        def evaluate(self, trainer, module):
            metrics = super().evaluate(trainer, module)
            measured.append(metrics["eval/reward/mean"])
            return metrics

    noted = Noted("mini_instruct", MiniInstructGold(), RolloutConfig(3), every_n_steps=1, at_start=False, n_prompts=4)
    best = ModelCheckpoint(
        tmp_path, monitor="eval/reward/mean", mode="max", every_n_train_steps=1, filename="{step}", save_top_k=1
    )
    fit_small("dpo", [noted, best], enable_checkpointing=True)
    assert len(measured) == 5
    assert best.best_model_score == pytest.approx(max(measured))
    assert Path(best.best_model_path).name == f"step={measured.index(max(measured)) + 1}.ckpt"


BLOCK = 2**15


def wandb_records(folder: Path) -> dict[str, list[Any]]:
    """What an offline run of Weights & Biases has written, by kind of record.

    The file is a log of LevelDB's format behind a header of 7 bytes: blocks of 32 KiB with pieces of records, each with a
    checksum (4 bytes), a length (2) and whether it is a whole record (1), its first (2), a middle (3) or its last piece (4).
    """
    from wandb.proto import wandb_internal_pb2

    (file,) = folder.glob("wandb/offline-run-*/run-*.wandb")
    data, records, at, pieces = file.read_bytes(), defaultdict(list), 7, b""
    while at + 7 <= len(data):
        if (left := BLOCK - at % BLOCK) < 7:
            at += left
            continue
        length, kind = int.from_bytes(data[at + 4 : at + 6], "little"), data[at + 6]
        pieces += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):
            record = wandb_internal_pb2.Record.FromString(pieces)
            name = record.WhichOneof("record_type")
            records[name].append(getattr(record, name))
            pieces = b""
    return records


def test_wandb_has_every_metric_the_tables_and_the_config_and_the_docs_explain_them(fit_small, tmp_path):
    logger = RunWandbLogger(tmp_path, offline=True)
    logger.log_hyperparams({"model": {"class_path": "DPO"}, "trainer": {"max_epochs": 1}})
    _, trainer = fit_small("dpo", of_every_step(), logger=logger)
    logger.experiment.finish()
    wandb.teardown()  # the process that writes the file has ended
    records = wandb_records(tmp_path)
    logged: dict[str, Any] = {}
    for history in records["history"]:
        for item in history.item:
            logged["/".join(item.nested_key) or item.key] = json.loads(item.value_json)
    expected = {name for name in trainer.callback_metrics if name.startswith("eval/")}
    assert len(expected) > 40
    page = (Path(__file__).parents[2] / "docs" / "callbacks.md").read_text(encoding="utf-8")
    assert {name for name in expected if f"`{name}`" not in page} == set()
    assert expected <= logged.keys()
    for name in expected:
        assert logged[name] == pytest.approx(float(trainer.callback_metrics[name]), rel=1e-5), name
    assert {name for name, value in logged.items() if value == "table-file"} == {
        "eval/kl_by_position/_type", "samples/_type",
    }  # fmt: skip
    last = json.loads((next(tmp_path.glob("wandb/offline-run-*/files")) / logged["samples/path"]).read_text())
    assert last["columns"][:5] == ["prompt", "response", "score", "reference", "reference_score"]
    assert len(last["data"]) == 3
    config = {update.key: json.loads(update.value_json) for update in records["config"][0].update}
    assert config == {"model": {"class_path": "DPO"}, "trainer": {"max_epochs": 1}}
