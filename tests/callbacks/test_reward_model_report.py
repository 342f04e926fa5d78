from __future__ import annotations

import csv
import json
import math

import pytest
import torch
from lightning.pytorch import Trainer, seed_everything

from callbacks import RewardModelReport
from callbacks.calibration import calibration
from callbacks.reward_model_report import Scored, report
from lit_align.data import LabelData, RankingData
from lit_align.data.mini_instruct import groups
from lit_align.errors import UserError
from lit_align.losses import BinaryCritique
from lit_align.methods import RewardModel, Schedule
from lit_align.models import LoRAConfig, ModelConfig
from lit_align.runtime.loggers import RunCSVLogger

pytestmark = pytest.mark.filterwarnings("ignore:.* rows of data.val have a prompt of data.train")


def test_calibration_by_hand():
    # sigmoid(1) = .731 in bin 10, sigmoid(-1) = .269 in bin 4, and so on for 3: .953 and .047.
    found = calibration(torch.tensor([1.0, 1.0, -1.0, 3.0]))
    low, mid = 1 / (1 + math.exp(3)), 1 / (1 + math.exp(1))
    assert found.predicted.tolist() == pytest.approx([low, mid, 1 - mid, 1 - low], abs=1e-6)
    assert found.happened.tolist() == pytest.approx([0, 1 / 3, 2 / 3, 1], abs=1e-6)
    assert found.share.tolist() == pytest.approx([1 / 8, 3 / 8, 3 / 8, 1 / 8])
    assert found.ece == pytest.approx(2 * (low / 8 + 3 / 8 * (1 / 3 - mid)), abs=1e-6)


def test_metrics_by_hand():
    scored = Scored(
        rewards=torch.tensor([2.0, 0.0, 1.0, 5.0, 4.0]),
        other=torch.tensor([1.0, 0.0, 0.0, 2.0, 3.0]),
        scores=torch.tensor([1.0, 0.0, 2.0, 1.0, 0.0]),
        rows=torch.tensor([7, 7, 3, 3, 3]),
    )
    metrics, table, (_, margins) = report(scored, ["a", "a", "b", "b", "b"])
    assert sorted(margins.tolist()) == [-4, -3, 1, 2]  # (1 - 5), (1 - 4), (5 - 4), (2 - 0)
    assert metrics["accuracy"] == 0.5
    assert metrics["accuracy/a"] == 1
    assert metrics["accuracy/b"] == pytest.approx(1 / 3)
    assert metrics["top_choice"] == 0.5
    assert metrics["margin_50"] == -1
    assert metrics["agreement"] == 0.75  # the other orders the pair (5, 4) the other way
    assert [(row["subset"], row["pairs"]) for row in table] == [("a", 1), ("b", 3)]


def fit(start, folder, watcher, rows=None, method=None, **trainer) -> tuple[RewardModel, Trainer]:
    seed_everything(7, verbose=False)
    module = method or RewardModel(
        ModelConfig(str(start)),
        optimizer=lambda parameters: torch.optim.AdamW(parameters, lr=1e-2),
        lr_scheduler=Schedule(),
    )
    fitted = Trainer(
        accelerator="cpu", max_epochs=1, limit_val_batches=1, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, default_root_dir=folder, callbacks=watcher, **trainer,
    )  # fmt: skip
    data = rows or RankingData(
        train="mini_instruct", val="mini_instruct", max_rows=32, batch_size=8, val_batch_size=500
    )
    fitted.fit(module, data)
    return module, fitted


def test_a_run_is_reported_and_not_changed(start, tmp_path):
    logger = RunCSVLogger(tmp_path)
    module, trainer = fit(start, tmp_path, [RewardModelReport()], logger=logger, check_val_every_n_epoch=None,
                          val_check_interval=2)  # fmt: skip
    plain, _ = fit(start, tmp_path, [], logger=False, check_val_every_n_epoch=None, val_check_interval=2)
    for key, value in plain.state_dict().items():
        assert torch.equal(module.state_dict()[key], value), key
    metrics = trainer.callback_metrics
    assert float(metrics["eval/reward_model/accuracy"]) == pytest.approx(float(metrics["val/accuracy"]), abs=1e-5)
    assert float(metrics["eval/reward_model/ece"]) == pytest.approx(float(metrics["val/ece"]), abs=1e-5)
    assert (tmp_path / "eval" / "reward_model.png").stat().st_size > 1000
    with (tmp_path / "metrics.csv").open() as lines:
        reported = [row["step"] for row in csv.DictReader(lines) if row["eval/reward_model/ece"]]
    assert reported == ["1", "3"]


@pytest.fixture
def rows_of_two_kinds(tmp_path):
    rows = [
        {"prompt": g.prompt, "chosen": g.responses[0], "rejected": g.responses[1], "kind": "odd" if i % 2 else "even"}
        for i, g in enumerate(groups("preference", 40))
    ]
    file = tmp_path / "rows.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)))
    return RankingData(train=str(file), val=str(file), batch_size=8, val_batch_size=40)


def test_subsets_by_a_column_and_another_model(start, tmp_path, rows_of_two_kinds):
    other = RewardModel(ModelConfig(str(start)))
    other.configure_model()
    other.export(tmp_path / "other")
    watcher = RewardModelReport(subset="kind", other=ModelConfig(str(tmp_path / "other")))
    _, trainer = fit(start, tmp_path, [watcher], rows_of_two_kinds, logger=RunCSVLogger(tmp_path))
    metrics = {name.removeprefix("eval/reward_model/"): float(v) for name, v in trainer.callback_metrics.items()}
    assert metrics["accuracy"] == pytest.approx((metrics["accuracy/even"] + metrics["accuracy/odd"]) / 2)
    assert 0 <= metrics["distance_low"] <= metrics["distance"] <= metrics["distance_high"] <= 1
    with (tmp_path / "eval" / "reward_model_subsets.csv").open() as lines:
        assert [(row["subset"], row["pairs"]) for row in csv.DictReader(lines)] == [("even", "20"), ("odd", "20")]


def test_what_cannot_be_reported(start, tmp_path, rows_of_two_kinds):
    with pytest.raises(UserError, match=r"no row of .* has a column 'topic'"):
        fit(start, tmp_path, [RewardModelReport(subset="topic")], rows_of_two_kinds, logger=False)
    critic = RewardModel(ModelConfig(str(start)), loss=BinaryCritique())
    labels = LabelData(train="mini_instruct", val="mini_instruct", max_rows=16, batch_size=8)
    with pytest.raises(UserError):
        fit(start, tmp_path, [RewardModelReport()], labels, critic, logger=False)
    with pytest.raises(UserError, match=r"RewardModelReport\.other: .* lora would have no effect"):
        RewardModelReport(other=ModelConfig("folder", lora=LoRAConfig()))
