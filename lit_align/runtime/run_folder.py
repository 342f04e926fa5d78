"""A run is a folder: config.yaml, metrics.csv, samples.jsonl, checkpoints/, model/, rounds/ and wandb/ of one training."""

from __future__ import annotations

import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jsonargparse import Namespace

from lit_align.errors import UserError
from lit_align.runtime.bad_batch import FILE as BAD_BATCH
from lit_align.runtime.checkpoints import newest_whole, refuse_faulty

LIGHTNINGS_OWN = {"last", "best", "hpc", "registry"}
"""Words that Lightning's `ckpt_path` gives a meaning to. `last` gets ours: the last of this run."""

CSV_LOGGER = "lightning.pytorch.loggers.CSVLogger"
WANDB_LOGGER = "lightning.pytorch.loggers.WandbLogger"
LIGHTNINGS_FLUSH = 100
"""Lightning's default for how many steps of metrics a killed run may lose."""


@dataclass(frozen=True)
class RunFolder:
    """The folder of one run, and what lies where in it.

    Args:
        path: The folder, as a rule `runs/<group>/<name>`.
    """

    path: Path

    @property
    def config(self) -> Path:
        """The config as it was merged from files and command line."""
        return self.path / "config.yaml"

    @property
    def metrics(self) -> Path:
        """What was logged, one row a step."""
        return self.path / "metrics.csv"

    @property
    def checkpoints(self) -> Path:
        """Lightning's checkpoints."""
        return self.path / "checkpoints"

    @property
    def model(self) -> Path:
        """The trained model as a Hugging Face folder, once `fit` is through."""
        return self.path / "model"

    def check_free(self) -> None:
        """Refuses to mix two runs.

        Raises:
            UserError: The folder holds a run already.
        """
        if self.metrics.exists() or any(self.checkpoints.glob("*")):
            raise UserError(
                f"{self.path} already holds a run. Continue it with `--ckpt_path last`, replace it with `--overwrite true`, "
                "or name another folder with `--run`."
            )

    def check_writable(self) -> None:
        """Tries to write where the folder is or will be, before anything is computed that could then not be saved.

        Raises:
            UserError: It cannot be written to.
        """
        there = next(folder for folder in (self.path, *self.path.absolute().parents) if folder.exists())
        try:
            with tempfile.TemporaryFile(dir=there) as file:
                file.write(b"0")
        except OSError as error:
            raise UserError(f"The run folder {self.path} cannot be written: {there}: {error.strerror}.") from error

    def clear(self) -> None:
        """Removes what a run has written here, and nothing else."""
        for name in ("config.yaml", "metrics.csv", "samples.jsonl", BAD_BATCH):
            (self.path / name).unlink(missing_ok=True)
        for name in ("checkpoints", "model", "rounds", "wandb"):
            shutil.rmtree(self.path / name, ignore_errors=True)


def find_checkpoint(ckpt_path: str, run: RunFolder | None) -> str:
    """The checkpoint that `--ckpt_path` means: `last` of the run, or a file or folder.

    Raises:
        UserError: There is none, or it is not whole.
    """
    if ckpt_path == "last" and run is not None:
        file = run.checkpoints / "last.ckpt"
        if not file.exists():
            newest = newest_whole(run.checkpoints)
            there = (
                f"the newest whole checkpoint is {newest}: go on from there with `--ckpt_path {newest}`"
                if newest
                else f"{run.checkpoints} holds no whole checkpoint"
            )
            raise UserError(
                f"There is no {file}; {there}. `save_last: true` of ModelCheckpoint writes it during training."
            )
        refuse_faulty(file)
        return str(file)
    if ckpt_path.partition(":")[0] in LIGHTNINGS_OWN or "://" in ckpt_path:
        return ckpt_path
    if not Path(ckpt_path).exists():
        raise UserError(f"There is no checkpoint {ckpt_path}.")
    refuse_faulty(Path(ckpt_path))
    return ckpt_path


def fill_from_run(config: Namespace, command: str) -> Namespace:
    """A copy of a command's config in which the places that it left open lie in its run folder. What it says, stays.

    Only `fit` writes to the run folder: the other commands print, and lose the loggers that would have written there.

    Args:
        config: The config of one command, with `run` and `trainer`.
        command: `fit`, `validate`, `test` or `predict`.
    """
    filled = config.clone()
    trainer = filled.get("trainer")
    if not isinstance(trainer, Namespace):
        return filled  # nothing to fill in, or nonsense that the parser refuses
    # Without a run nothing is written, and where a logger would have written does not matter.
    run = RunFolder(Path(str(config.get("run") or "runs")))
    if config.get("run") is not None and trainer.get("default_root_dir") is None:
        trainer["default_root_dir"] = str(run.path)
    loggers = trainer.get("logger")
    if loggers is None or loggers is True:
        loggers = [_namespace(class_path=CSV_LOGGER, init_args=_namespace())]
    if loggers:
        listed = loggers if isinstance(loggers, list) else [loggers]
        kept = [logger for logger in listed if not _take_in(logger, run) or command == "fit"]
        trainer["logger"] = kept or False
    callbacks = trainer.get("callbacks") or []
    for callback in callbacks if isinstance(callbacks, list) else [callbacks]:
        init_args = callback.get("init_args") if isinstance(callback, Namespace) else None
        if init_args is not None and "dirpath" in init_args and init_args["dirpath"] is None:
            init_args["dirpath"] = str(run.checkpoints)
    return filled


def _take_in(logger: Any, run: RunFolder) -> bool:
    """Makes a CSV or W&B logger one that writes into the run folder; False where its config says where it writes."""
    class_path = logger.get("class_path") if isinstance(logger, Namespace) else None
    init_args = logger.get("init_args") or _namespace() if class_path else None
    if init_args is None or init_args.get("save_dir") not in (None, ".") or init_args.get("dir") is not None:
        return False
    if class_path == CSV_LOGGER:
        every = init_args.get("flush_logs_every_n_steps", LIGHTNINGS_FLUSH)
        logger["class_path"] = "lit_align.runtime.loggers.RunCSVLogger"
        logger["init_args"] = _namespace(
            save_dir=str(run.path),
            prefix=init_args.get("prefix", ""),
            flush_logs_every_n_steps=1 if every == LIGHTNINGS_FLUSH else every,
        )
    elif class_path == WANDB_LOGGER:
        logger["class_path"] = "lit_align.runtime.loggers.RunWandbLogger"
        init_args["save_dir"] = str(run.path)
    else:
        return False
    return True


def _namespace(**values: Any) -> Namespace:
    return Namespace(**values)  # type: ignore[no-untyped-call]
