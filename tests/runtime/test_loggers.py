"""metrics.csv that goes on where it stopped, and Weights & Biases that never stands in the way."""

from __future__ import annotations

import csv
import errno
from pathlib import Path

import pytest
import torch
import wandb

from lit_align.runtime import loggers
from lit_align.runtime.loggers import RunCSVLogger, RunWandbLogger, last_wandb_id, wandb_key_is_set


def rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "metrics.csv").open(newline="") as lines:
        return list(csv.DictReader(lines))


def test_rows_are_on_disk_at_once_and_columns_may_come_later(tmp_path: Path):
    logger = RunCSVLogger(tmp_path / "run")
    logger.log_metrics({"train/loss": torch.tensor(0.5)}, step=0)
    assert rows(tmp_path / "run") == [{"step": "0", "train/loss": "0.5"}]
    logger.log_metrics({"val/loss": 0.25}, step=0)
    logger.log_metrics({"train/loss": 0.125}, step=1)
    assert rows(tmp_path / "run") == [
        {"step": "0", "train/loss": "0.5", "val/loss": ""},
        {"step": "0", "train/loss": "", "val/loss": "0.25"},
        {"step": "1", "train/loss": "0.125", "val/loss": ""},
    ]
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["metrics.csv"]
    logger.log_hyperparams({"lr": 1.0})
    logger.finalize("success")
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["metrics.csv"]


def test_a_continued_run_adds_to_its_rows_without_those_after_its_checkpoint(tmp_path: Path):
    first = RunCSVLogger(tmp_path)
    for step in range(4):
        first.log_metrics({"train/loss": float(step), "train/lr": 0.1}, step=step)
    again = RunCSVLogger(tmp_path)
    again.drop_from(2)
    again.log_metrics({"train/loss": 9.0, "val/loss": 1.0}, step=2)
    again.finalize("success")
    assert [(row["step"], row["train/loss"], row["train/lr"], row["val/loss"]) for row in rows(tmp_path)] == [
        ("0", "0.0", "0.1", ""),
        ("1", "1.0", "0.1", ""),
        ("2", "9.0", "", "1.0"),
    ]


def test_half_a_line_left_by_a_kill_is_dropped(tmp_path: Path):
    (tmp_path / "metrics.csv").write_text("step,train/loss\n0,1.5\n1,0.2")
    logger = RunCSVLogger(tmp_path)
    logger.log_metrics({"train/loss": 1.0}, step=1)
    assert rows(tmp_path) == [{"step": "0", "train/loss": "1.5"}, {"step": "1", "train/loss": "1.0"}]


def test_rows_wait_as_long_as_the_config_says(tmp_path: Path):
    logger = RunCSVLogger(tmp_path, flush_logs_every_n_steps=2)
    logger.log_metrics({"a": 1.0}, step=0)
    assert not (tmp_path / "metrics.csv").exists()
    logger.log_metrics({"a": 1.0}, step=1)
    assert len(rows(tmp_path)) == 2


@pytest.fixture
def nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user who never logged in to W&B."""
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.delenv("WANDB_BASE_URL", raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    return tmp_path / "netrc"


def test_a_key_is_found_where_wandb_looks_for_it(nobody: Path, monkeypatch: pytest.MonkeyPatch):
    assert not wandb_key_is_set()
    nobody.write_text("machine api.wandb.ai\n  login user\n  password 0123456789\n")
    assert wandb_key_is_set()
    monkeypatch.setenv("WANDB_BASE_URL", "https://wandb.company.example")
    assert not wandb_key_is_set()
    monkeypatch.setenv("WANDB_API_KEY", "0123456789")
    assert wandb_key_is_set()


@pytest.mark.parametrize(("key", "offline", "expected"), [("", False, True), ("k", False, False), ("k", True, True)])
def test_it_is_offline_without_a_key_or_where_told(
    nobody: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, key: str, offline: bool, expected: bool
):
    monkeypatch.setenv("WANDB_API_KEY", key)
    started: dict[str, object] = {}
    monkeypatch.setattr(wandb, "init", lambda **settings: started.update(settings))
    monkeypatch.setattr(wandb, "run", None)
    monkeypatch.setenv("WANDB_MODE", "")
    logger = RunWandbLogger(tmp_path / "group" / "name", offline=offline, project="p")
    assert logger.experiment is None
    assert (started["name"], started["group"], started["project"]) == ("name", "group", "p")
    assert started["dir"] == str(tmp_path / "group" / "name")
    assert ("settings" in started) is expected
    assert (loggers.os.environ["WANDB_MODE"] == "dryrun") is expected


def test_its_files_lie_in_the_run_and_a_continued_run_goes_on_in_them(nobody: Path, tmp_path: Path):
    run = tmp_path / "run"
    run.mkdir()
    assert last_wandb_id(run) is None
    logger = RunWandbLogger(run)
    logger.log_metrics({"train/loss": 1.0}, step=0)
    logger.experiment.finish()
    (folder,) = (run / "wandb").glob("offline-run-*")
    assert folder.name.endswith(f"-{logger.version}")
    assert last_wandb_id(run) == logger.version
    assert RunWandbLogger(run).version == logger.version


def test_where_wandb_fails_the_run_goes_on(nobody: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    real = wandb.init

    def broken(**settings: object) -> object:
        if settings.get("mode") == "disabled":
            return real(**settings)
        raise wandb.errors.CommError("no service")

    monkeypatch.setattr(wandb, "init", broken)
    monkeypatch.setattr(wandb, "run", None)
    logger = RunWandbLogger(tmp_path)
    with pytest.warns(UserWarning, match="goes on without Weights & Biases: no service"):
        logger.log_metrics({"train/loss": 1.0}, step=0)
    logger.log_metrics({"train/loss": 1.0}, step=1)
    logger.experiment.finish()


def test_where_wandb_cannot_be_reached_the_run_goes_on_offline(
    nobody: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    real = wandb.init

    def unreachable(**settings: object) -> object:
        if settings.get("mode") in ("disabled", "offline"):
            return real(**settings)
        raise wandb.errors.CommError("timed out")

    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    monkeypatch.setattr(wandb, "init", unreachable)
    monkeypatch.setattr(wandb, "run", None)
    logger = RunWandbLogger(tmp_path)
    with pytest.warns(UserWarning, match=r"cannot be reached, so this run goes on offline.*timed out"):
        logger.log_metrics({"train/loss": 1.0}, step=0)

    def dead(row: object) -> None:
        raise BrokenPipeError("the service is gone")

    with monkeypatch.context() as patch:
        patch.setattr(logger.experiment, "log", dead)
        logger.experiment.finish()
        with pytest.warns(UserWarning, match="goes on without Weights & Biases: the service is gone"):
            logger.log_metrics({"train/loss": 1.0}, step=1)
    logger.log_metrics({"train/loss": 1.0}, step=2)
    assert len(list((tmp_path / "wandb").glob("offline-run-*"))) == 1


def test_rows_wait_while_the_disk_is_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    logger = RunCSVLogger(tmp_path)
    logger.log_metrics({"a": 1.0}, step=0)

    class Full(csv.DictWriter):
        def writerows(self, rows: object) -> None:
            self.writer.writerow(["half of a row"])
            raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(csv, "DictWriter", Full)
        with pytest.warns(UserWarning, match=r"metrics.csv cannot be written: No space left on device\. Its rows wait"):
            logger.log_metrics({"a": 2.0}, step=1)
        logger.log_metrics({"a": 3.0, "b": 1.0}, step=2)
        assert rows(tmp_path) == [{"a": "1.0", "step": "0"}]
    logger.log_metrics({"a": 4.0}, step=3)
    assert [(row["step"], row["a"], row["b"]) for row in rows(tmp_path)] == [
        ("0", "1.0", ""), ("1", "2.0", ""), ("2", "3.0", "1.0"), ("3", "4.0", ""),
    ]  # fmt: skip
