"""Checkpoints that are whole or not there, whatever happens while they are written."""

from __future__ import annotations

import contextlib
import os
import pickle
import warnings
import zipfile
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins import TorchCheckpointIO

from lit_align.errors import UserError

PARTIAL = ".partial"
WRITTEN_LAST = "meta.pt"
"""The file of a sharded checkpoint that Lightning writes when all others are there."""


class WholeCheckpoints(TorchCheckpointIO):
    """Lightning's single-file checkpoints, written so that a kill, a power cut or a full disk never leaves half of one.

    Lightning writes to the system's temporary folder and moves the file from there. Where that is another file system the
    move is a copy, and a kill in the middle of it leaves half a checkpoint under the name of a whole one. Here the file is
    written beside its place, forced to disk, and renamed.

    A checkpoint that cannot be written is a warning, and training goes on: `failure` says what is wrong until one succeeds,
    and until then no older checkpoint is removed.
    """

    def __init__(self) -> None:
        super().__init__()
        self.failure: str | None = None
        self._saved: Path | None = None
        self._spared: list[str] = []

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any | None = None) -> None:
        """Writes a file in one piece; to remote storage (`s3://`) Lightning's own way. Called on rank 0 only."""
        if storage_options is not None or "://" in str(path):
            super().save_checkpoint(checkpoint, path, storage_options)
            return
        try:
            write_whole(checkpoint, Path(path))
        except OSError as error:
            self.failure = f"{path} could not be saved: {error.strerror or error}"
            warnings.warn(
                f"{self.failure}. Training goes on, and older checkpoints are kept until one can be saved.",
                stacklevel=2,
            )
            return
        self.failure, self._saved = None, Path(path)
        spared, self._spared = self._spared, []
        for other in spared:
            if other != str(path):
                self.remove_checkpoint(other)

    def load_checkpoint(
        self, path: str | Path, map_location: Any = lambda storage, _: storage, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Reads a checkpoint: tensors and plain values only, unless `weights_only` is False.

        Raises:
            UserError: It cannot be read, or holds other objects.
        """
        try:
            return super().load_checkpoint(path, map_location, weights_only=weights_only is not False)
        except pickle.UnpicklingError as error:
            raise UserError(
                f"{path} holds more than tensors and plain values, and reading that could run code that someone put there. "
                "If it comes from someone you trust, add `--weights_only false`."
            ) from error
        except (RuntimeError, EOFError) as error:
            raise UserError(f"{path} cannot be read: {str(error).splitlines()[0]}") from error

    def remove_checkpoint(self, path: str | Path) -> None:
        """Removes a checkpoint, unless the one that should replace it could not be saved."""
        if self.failure is not None:
            self._spared.append(str(path))
            return
        if self._saved is not None and "://" not in str(path):
            _point_to(self._saved, instead_of=Path(path))
        super().remove_checkpoint(path)


def write_whole(checkpoint: dict[str, Any], file: Path) -> None:
    """`torch.save`, after which the file is whole, also for a machine that loses power at any moment.

    Raises:
        OSError: It could not be written; what was there before still is, and nothing else.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    for left_by_a_kill in file.parent.glob(f".*{PARTIAL}"):
        left_by_a_kill.unlink(missing_ok=True)
    partial = file.with_name(f".{file.name}{PARTIAL}")
    try:
        with partial.open("wb") as out:
            torch.save(checkpoint, out)
            out.flush()
            os.fsync(out.fileno())
        partial.replace(file)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    with contextlib.suppress(OSError):  # not every file system lets a folder be synced
        folder = os.open(file.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def _point_to(saved: Path, instead_of: Path) -> None:
    """Turns links to a checkpoint that is about to be removed (`save_last: link`) into links to the newest one."""
    for link in instead_of.parent.glob("*.ckpt"):
        if link.is_symlink() and link.resolve() == instead_of.resolve() and saved.parent == link.parent:
            beside = link.with_name(f".{link.name}{PARTIAL}")
            beside.unlink(missing_ok=True)
            beside.symlink_to(saved.name)
            beside.replace(link)


def fault_of(checkpoint: Path) -> str | None:
    """What is wrong with a checkpoint, to be read after its name; None for a whole one.

    A file is read to its end and compared with its checksums, which torch writes and, when it loads, does not look at. Of a
    folder of shards only the part that is written last is looked at.
    """
    if checkpoint.is_dir():
        if (checkpoint / "latest").is_file():  # DeepSpeed's form, which names its parts by itself
            return None
        return fault_of(checkpoint / WRITTEN_LAST) and f"has no whole {WRITTEN_LAST}: its writing was cut short"
    try:
        with zipfile.ZipFile(checkpoint) as parts:
            damaged = parts.testzip()
    except zipfile.BadZipFile:
        return "is no whole checkpoint: its writing was cut short, or it is something else"
    except OSError as error:
        return f"cannot be read: {error.strerror or error}"
    return (
        None if damaged is None else f"is damaged: {damaged} in it does not have the checksum that it was written with"
    )


def newest_whole(folder: Path, without: Path | None = None) -> Path | None:
    """The newest checkpoint in a folder that has no fault; None where there is none.

    Args:
        folder: Where `*.ckpt` are.
        without: One that is not asked for, nor what it links to.
    """
    known = without and without.resolve()
    found = [path for path in folder.glob("*.ckpt") if path.exists() and path.resolve() != known]
    by_age = sorted(found, key=lambda path: path.stat().st_mtime, reverse=True)
    return next((path for path in by_age if fault_of(path) is None), None)


def refuse_faulty(checkpoint: Path) -> None:
    """Names what is wrong with a checkpoint, and what to go on from instead.

    Raises:
        UserError: It is not whole.
    """
    fault = fault_of(checkpoint)
    if fault is None:
        return
    other = newest_whole(checkpoint.parent, without=checkpoint)
    instead = (
        f"The newest whole one beside it is {other}: go on from there with `--ckpt_path {other}`."
        if other
        else "There is no whole one beside it."
    )
    raise UserError(f"{checkpoint} {fault}. {instead}")
