"""What a run folder takes in, what it refuses, and what it leaves alone."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from jsonargparse import Namespace

from lit_align.errors import UserError
from lit_align.runtime.run_folder import RunFolder, fill_from_run, find_checkpoint

CSV = "lightning.pytorch.loggers.CSVLogger"
WANDB = "lightning.pytorch.loggers.WandbLogger"
RUN_CSV = "lit_align.runtime.loggers.RunCSVLogger"
RUN_WANDB = "lit_align.runtime.loggers.RunWandbLogger"


def component(class_path: str, **init_args: object) -> Namespace:
    return Namespace(class_path=class_path, init_args=Namespace(**init_args))


def config(**trainer: object) -> Namespace:
    return Namespace(run=Path("runs/g/n"), trainer=Namespace(**{"default_root_dir": None, "logger": None, **trainer}))


def test_open_places_lie_in_the_run_folder():
    given = config(
        logger=[
            component(CSV, save_dir=None, flush_logs_every_n_steps=100),
            component(WANDB, save_dir=".", project="p"),
        ],
        callbacks=[component("ModelCheckpoint", dirpath=None), component("callbacks.Other", every=3)],
    )
    before = str(given)
    trainer = fill_from_run(given, "fit").trainer
    assert str(given) == before
    assert trainer.default_root_dir == "runs/g/n"
    csv, wandb = trainer.logger
    assert (csv.class_path, csv.init_args.save_dir, csv.init_args.flush_logs_every_n_steps) == (RUN_CSV, "runs/g/n", 1)
    assert (wandb.class_path, wandb.init_args.save_dir, wandb.init_args.project) == (RUN_WANDB, "runs/g/n", "p")
    assert trainer.callbacks[0].init_args.dirpath == "runs/g/n/checkpoints"
    assert trainer.callbacks[1] == component("callbacks.Other", every=3)


def test_what_a_config_says_stays():
    given = config(
        default_root_dir="elsewhere",
        logger=[component(CSV, save_dir="logs"), component(WANDB, save_dir=".", dir="logs"), component("mine.Logger")],
        callbacks=component("ModelCheckpoint", dirpath="there"),
    )
    assert str(fill_from_run(given, "fit")) == str(given)
    given = config(logger=component(CSV, save_dir=None, flush_logs_every_n_steps=7, prefix="x"), callbacks=None)
    (csv,) = fill_from_run(given, "fit").trainer.logger
    assert (csv.init_args.flush_logs_every_n_steps, csv.init_args.prefix) == (7, "x")


@pytest.mark.parametrize("logger", [None, True])
def test_a_run_without_a_logger_gets_metrics_csv(logger: bool | None):
    (csv,) = fill_from_run(config(logger=logger, callbacks=None), "fit").trainer.logger
    assert (csv.class_path, csv.init_args.save_dir) == (RUN_CSV, "runs/g/n")


def test_no_logger_stays_no_logger():
    assert fill_from_run(config(logger=False), "fit").trainer.logger is False


@pytest.mark.parametrize("command", ["validate", "test", "predict"])
def test_other_commands_write_nothing_into_the_run(command: str):
    assert fill_from_run(config(), command).trainer.logger is False
    given = config(logger=[component(WANDB, save_dir="."), component(CSV, save_dir="logs")])
    assert fill_from_run(given, command).trainer.logger == [component(CSV, save_dir="logs")]


def test_without_a_run_loggers_are_valid_and_the_rest_is_lightnings():
    given = config(logger=[component(CSV, save_dir=None)], callbacks=[])
    given.run = None
    trainer = fill_from_run(given, "fit").trainer
    assert trainer.logger[0].class_path == RUN_CSV
    assert trainer.default_root_dir is None
    assert fill_from_run(given, "validate").trainer.logger is False


@pytest.mark.parametrize("name", ["metrics.csv", "checkpoints/last.ckpt"])
def test_a_folder_with_a_run_is_refused(tmp_path: Path, name: str):
    run = RunFolder(tmp_path / "g" / "n")
    run.check_free()
    (run.path / name).parent.mkdir(parents=True)
    run.check_free()
    (run.path / name).touch()
    with pytest.raises(UserError, match=r"n already holds a run.*--ckpt_path last.*--overwrite true.*--run"):
        run.check_free()


def test_clear_removes_what_a_run_wrote_and_nothing_else(tmp_path: Path):
    for name in (
        "config.yaml",
        "metrics.csv",
        "samples.jsonl",
        "bad_batch.json",
        "checkpoints/a.ckpt",
        "model/b",
        "wandb/c",
        "notes.md",
        "data/d",
    ):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    RunFolder(tmp_path).clear()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data", "notes.md"]
    RunFolder(tmp_path).clear()


def test_last_is_the_last_of_this_run(tmp_path: Path):
    run = RunFolder(tmp_path)
    with pytest.raises(UserError, match=r"last.ckpt; .*checkpoints holds no whole checkpoint\. `save_last: true`"):
        find_checkpoint("last", run)
    run.checkpoints.mkdir()
    torch.save({}, run.checkpoints / "step=3.ckpt")
    (run.checkpoints / "last.ckpt").symlink_to("gone.ckpt")
    with pytest.raises(UserError, match=r"last.ckpt; the newest .* go on .* `--ckpt_path .*step=3.ckpt`"):
        find_checkpoint("last", run)
    torch.save({}, run.checkpoints / "gone.ckpt")
    assert find_checkpoint("last", run) == str(run.checkpoints / "last.ckpt")


def test_a_missing_checkpoint_is_a_sentence(tmp_path: Path):
    with pytest.raises(UserError, match=r"There is no checkpoint .*gone\.ckpt"):
        find_checkpoint(str(tmp_path / "gone.ckpt"), RunFolder(tmp_path))
    (tmp_path / "sharded").mkdir()
    with pytest.raises(
        UserError, match=r"sharded has no whole meta.pt: its writing was cut short\. There is no whole one"
    ):
        find_checkpoint(str(tmp_path / "sharded"), None)
    torch.save({}, tmp_path / "sharded" / "meta.pt")
    assert find_checkpoint(str(tmp_path / "sharded"), None) == str(tmp_path / "sharded")
    for lightnings_own in ("best", "hpc", "registry:model", "s3://bucket/a.ckpt"):
        assert find_checkpoint(lightnings_own, RunFolder(tmp_path)) == lightnings_own


def test_a_checkpoint_that_is_not_whole_is_named_with_one_that_is(tmp_path: Path):
    run = RunFolder(tmp_path)
    run.checkpoints.mkdir()
    for name in ("step=1.ckpt", "step=2.ckpt", "last.ckpt"):
        torch.save({"weight": torch.zeros(100)}, run.checkpoints / name)
    whole = (run.checkpoints / "last.ckpt").read_bytes()
    os.utime(run.checkpoints / "step=1.ckpt", (1, 1))
    (run.checkpoints / "last.ckpt").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match=r"last.ckpt is no whole checkpoint.* `--ckpt_path .*step=2.ckpt`"):
        find_checkpoint("last", run)
    assert find_checkpoint(str(run.checkpoints / "step=2.ckpt"), run)


def test_a_folder_that_cannot_be_written_is_refused_before_training(tmp_path: Path):
    RunFolder(tmp_path / "runs" / "g" / "a").check_writable()
    assert not list(tmp_path.iterdir())
    (tmp_path / "runs").touch()
    with pytest.raises(UserError, match=r"The run folder .* cannot be written: .*runs: Not a directory\."):
        RunFolder(tmp_path / "runs" / "g" / "a").check_writable()
