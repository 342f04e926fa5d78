"""How a run ends before it is through: a signal saves its state first, and whatever the reason, it says how to go on."""

from __future__ import annotations

import os
import shutil
import signal
import threading
from pathlib import Path
from typing import Any

from lightning.fabric.plugins import TorchCheckpointIO
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint

from lit_align.runtime.checkpoints import WholeCheckpoints
from lit_align.runtime.resume import gather_per_rank

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Stopped(SystemExit):
    """Ends a run that was asked to stop; `code` is 128 and the number of the signal: 143 for SIGTERM, 130 for Ctrl-C."""


class OrderlyEnd(Callback):
    """Has SIGTERM and Ctrl-C wait for the end of the optimiser step, save `last.ckpt` and end the run on all ranks.

    Lightning's own handler talks to the other ranks while they are in the middle of something else, hangs, and exits with 0.
    Here a handler only takes a note, and ranks agree on it where each has finished the same step: one rank's signal stops
    all. A second Ctrl-C ends at once.

    Checkpoints are written by `WholeCheckpoints`, unless the Trainer was given another `CheckpointIO`.
    """

    def __init__(self) -> None:
        self._asked: int | None = None
        self._process = 0
        self._step = 0
        self._before: dict[signal.Signals, Any] = {}

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Before a checkpoint is read or written."""
        if type(trainer.strategy.checkpoint_io) is TorchCheckpointIO:
            trainer.strategy.checkpoint_io = WholeCheckpoints()

    def on_sanity_check_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The first moment at which Lightning has set its own handlers."""
        self._listen()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The same where there is no sanity check."""
        self._listen()
        self._step = trainer.global_step

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Stops where an optimiser step is complete: no accumulated gradient is lost, and nothing is trained on twice."""
        if trainer.global_step == self._step:
            return
        self._step = trainer.global_step
        if trainer.strategy.reduce_boolean_decision(self._asked is not None, all=False):
            self._stop(trainer)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Says how to go on after an error; what a signal stopped has said so already."""
        in_training = bool(self._before)
        self._stop_listening()
        if isinstance(exception, Stopped) or not trainer.is_global_zero or not in_training or trainer.sanity_checking:
            return
        saved = _last_saved(trainer)
        if saved is None:
            print(  # noqa: T201
                "There is no checkpoint to go on from: `every_n_train_steps` of ModelCheckpoint says how often one is written."
            )
        else:
            # Not saved here: the batch is taken, and random numbers are drawn, that the step would be repeated with.
            print(  # noqa: T201
                f"The run failed after step {trainer.global_step}. Once the cause is put right, {how_to_go_on(trainer, saved)}"
                " What was done since that checkpoint is done again, with the same numbers."
            )

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Leaves signals as they were."""
        self._stop_listening()

    def _listen(self) -> None:
        if self._before or threading.current_thread() is not threading.main_thread():
            return
        self._process = os.getpid()
        for number in SIGNALS:
            self._before[number] = signal.signal(number, self._note)

    def _stop_listening(self) -> None:
        before, self._before = self._before, {}
        for number, handler in before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: Any) -> None:
        # Worker processes of a loader inherit this, and have to go on until the step's end.
        if os.getpid() != self._process:
            return
        if number == signal.SIGINT and self._asked == number:
            self._stop_listening()
            raise Stopped(128 + number)
        if self._asked is None:
            again = " Press Ctrl-C again to end at once." if number == signal.SIGINT else ""
            # Not by print, which a signal may interrupt in the middle of a write.
            os.write(2, f"\n{signal.Signals(number).name}: the run stops after this step.{again}\n".encode())
        self._asked = number

    def _stop(self, trainer: Trainer) -> None:
        number = max(asked or 0 for asked in gather_per_rank(self._asked))
        saved = _save_last(trainer)
        if trainer.is_global_zero:
            failure = getattr(trainer.strategy.checkpoint_io, "failure", None)
            end = f"Stopped by {signal.Signals(number).name} after step {trainer.global_step}"
            if saved is None:
                print(f"{end}; checkpoints are switched off, so nothing was saved.")  # noqa: T201
            elif failure is not None:
                print(f"{end}; {failure}.")  # noqa: T201
            else:
                print(f"{end}. To take it up again, {how_to_go_on(trainer, saved)}")  # noqa: T201
        raise Stopped(128 + number)


def how_to_go_on(trainer: Trainer, checkpoint: Path) -> str:
    """A sentence with the command that goes on from a checkpoint."""
    root = Path(trainer.default_root_dir)
    if not (root / "config.yaml").is_file():
        return f'go on with `trainer.fit(..., ckpt_path="{checkpoint}")`.'
    is_last = checkpoint.absolute() == (root / "checkpoints" / "last.ckpt").absolute()
    return f"go on with: lit-align fit --config {root / 'config.yaml'} --ckpt_path {'last' if is_last else checkpoint}"


def _savers(trainer: Trainer) -> list[ModelCheckpoint]:
    """The callbacks that write checkpoints, those with a `last.ckpt` first."""
    savers = [callback for callback in trainer.checkpoint_callbacks if isinstance(callback, ModelCheckpoint)]
    return sorted((saver for saver in savers if saver.dirpath), key=lambda saver: not saver.save_last)


def _save_last(trainer: Trainer) -> Path | None:
    """Writes the state of now as `last.ckpt`. Every rank has to call.

    Returns:
        The file, or None for a run without checkpoints.
    """
    savers = [] if getattr(trainer, "fast_dev_run", False) else _savers(trainer)
    if not savers:
        return None
    name = savers[0].CHECKPOINT_NAME_LAST + savers[0].FILE_EXTENSION
    path = savers[0].last_model_path or str(Path(str(savers[0].dirpath), name))
    # Else it would take the file for another run's when it next saves, and leave it beside a `last-v1.ckpt`.
    savers[0].last_model_path = path
    # Shards are written into a folder that is there already, or into what a link points to: those of one state among others.
    before = Path(path).with_name("before-last.ckpt")
    if trainer.is_global_zero and Path(path).is_dir():
        if Path(path).is_symlink():
            Path(path).unlink()
        else:
            Path(path).rename(before)
    trainer.strategy.barrier()
    trainer.save_checkpoint(path, weights_only=False)
    if trainer.is_global_zero:
        shutil.rmtree(before, ignore_errors=True)
    return Path(path)


def _last_saved(trainer: Trainer) -> Path | None:
    """The newest checkpoint that this run has written or found."""
    found = [file for saver in _savers(trainer) for file in Path(str(saver.dirpath)).glob("*.ckpt") if file.exists()]
    return max(found, key=lambda file: (file.stat().st_mtime, file.name == "last.ckpt"), default=None)
