"""Checkpoints that are whole or not there: what a full disk, a kill and a flipped bit leave, and what is read."""

from __future__ import annotations

import errno
import os
import signal
import warnings
from pathlib import Path

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from torch.utils.data import DataLoader

from lit_align.errors import UserError
from lit_align.runtime import OrderlyEnd
from lit_align.runtime.checkpoints import WholeCheckpoints, fault_of, newest_whole, refuse_faulty, write_whole


class Line(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(1, 1)

    def training_step(self, batch, index):
        return self.layer(batch).square().mean()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


def train(folder: Path, **saved: object) -> Trainer:
    """Four steps, each with a checkpoint."""
    trainer = Trainer(
        accelerator="cpu", max_steps=4, logger=False, enable_progress_bar=False, enable_model_summary=False,
        default_root_dir=folder,
        callbacks=[OrderlyEnd(), ModelCheckpoint(folder, filename="{step}", every_n_train_steps=1, **saved)],
    )  # fmt: skip
    trainer.fit(Line(), DataLoader(torch.ones(4, 1)))
    return trainer


def full_disk(monkeypatch: pytest.MonkeyPatch, at: set[int]) -> None:
    """Lets the calls of `torch.save` with these numbers write a part and then run out of space."""
    real, calls = torch.save, iter(range(1000))

    def save(value: object, file: object) -> None:
        if next(calls) in at:
            file.write(b"half")
            raise OSError(errno.ENOSPC, "No space left on device")
        real(value, file)

    monkeypatch.setattr(torch, "save", save)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_what_was_there_stays_until_the_new_file_is_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    file = tmp_path / "new" / "last.ckpt"
    write_whole({"a": torch.ones(3)}, file)
    before = file.read_bytes()
    full_disk(monkeypatch, {0})
    with pytest.raises(OSError, match="No space left"):
        write_whole({"a": torch.zeros(3)}, file)
    assert names(file.parent) == ["last.ckpt"]
    assert file.read_bytes() == before
    (file.parent / ".step=1.ckpt.partial").touch()
    write_whole({"a": torch.zeros(3)}, file)
    assert names(file.parent) == ["last.ckpt"]
    assert torch.equal(torch.load(file, weights_only=True)["a"], torch.zeros(3))


@pytest.mark.parametrize("moment", ["torch.save", "os.fsync", "pathlib.Path.replace"])
def test_a_kill_while_it_is_written_leaves_the_whole_one_before(moment: str, tmp_path: Path, monkeypatch):
    file = tmp_path / "last.ckpt"
    write_whole({"a": torch.ones(3)}, file)
    before = file.read_bytes()

    def struck(_: object, out: object = None, *__: object) -> None:
        if moment == "torch.save":
            out.write(b"half")
            out.flush()
        os.kill(os.getpid(), signal.SIGKILL)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that there are threads, which the child has no use for
        child = os.fork()
    if child == 0:
        monkeypatch.setattr(moment, struck)
        write_whole({"a": torch.zeros(3)}, file)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    assert names(tmp_path) == [".last.ckpt.partial", "last.ckpt"]
    assert file.read_bytes() == before
    assert newest_whole(tmp_path) == file


def test_a_full_disk_costs_no_checkpoint_and_ends_no_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    full_disk(monkeypatch, {2, 3, 4, 5})  # of steps 2 and 3: the numbered one, and last.ckpt
    with pytest.warns(
        UserWarning, match=r"ckpt could not be saved: No space left .* Training goes on, and older"
    ) as said:
        trainer = train(tmp_path, save_last=True, save_top_k=1)
    assert trainer.global_step == 4
    assert len([one for one in said if "could not be saved" in str(one.message)]) == 4
    assert names(tmp_path) == ["last.ckpt", "step=4.ckpt"]  # that of step 1 went when there was another
    assert trainer.strategy.checkpoint_io.failure is None


def test_a_disk_that_stays_full_leaves_the_last_whole_one_and_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    full_disk(monkeypatch, set(range(4, 100)))
    with pytest.warns(UserWarning, match="could not be saved"):
        trainer = train(tmp_path, save_last=True, save_top_k=1)
    assert names(tmp_path) == ["last.ckpt", "step=2.ckpt"]
    assert torch.load(tmp_path / "last.ckpt", weights_only=True)["global_step"] == 2
    assert "last.ckpt could not be saved: No space left on device" in trainer.strategy.checkpoint_io.failure


def test_a_link_to_the_last_one_never_leads_nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    real = WholeCheckpoints.remove_checkpoint
    seen = []

    def watched(self: WholeCheckpoints, path: str) -> None:
        real(self, path)
        seen.append(torch.load(tmp_path / "last.ckpt", weights_only=True)["global_step"])

    monkeypatch.setattr(WholeCheckpoints, "remove_checkpoint", watched)
    train(tmp_path, save_last="link", save_top_k=1)
    assert seen == [2, 3, 4]
    assert names(tmp_path) == ["last.ckpt", "step=4.ckpt"]


def test_faults_are_named(tmp_path: Path):
    file = tmp_path / "a.ckpt"
    torch.save({"weight": torch.ones(1000)}, file)
    assert fault_of(file) is None
    whole = file.read_bytes()
    file.write_bytes(whole[:-10])
    assert fault_of(file) == "is no whole checkpoint: its writing was cut short, or it is something else"
    flipped = bytearray(whole)
    flipped[len(flipped) // 2] ^= 1
    file.write_bytes(flipped)
    assert torch.load(file, weights_only=True)  # torch does not notice
    assert fault_of(file) == "is damaged: a/data/0 in it does not have the checksum that it was written with"
    assert "cannot be read: No such file" in str(fault_of(tmp_path / "b.ckpt"))
    (tmp_path / "deepspeed").mkdir()
    (tmp_path / "deepspeed" / "latest").touch()
    assert fault_of(tmp_path / "deepspeed") is None


def test_the_newest_whole_one_is_offered(tmp_path: Path):
    for age, name in enumerate(("c", "b", "a", "broken")):
        torch.save({}, tmp_path / f"{name}.ckpt")
        os.utime(tmp_path / f"{name}.ckpt", (age, age))
    (tmp_path / "broken.ckpt").write_bytes(b"PK")
    (tmp_path / "last.ckpt").symlink_to("broken.ckpt")
    assert newest_whole(tmp_path) == tmp_path / "a.ckpt"
    assert newest_whole(tmp_path, without=tmp_path / "a.ckpt") == tmp_path / "b.ckpt"
    with pytest.raises(UserError, match=r"last.ckpt is no whole checkpoint.* `--ckpt_path .*/a.ckpt`"):
        refuse_faulty(tmp_path / "last.ckpt")


class Trap:
    def __reduce__(self):
        return os.mkdir, ("trapped",)


def test_a_checkpoint_runs_no_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"trap": Trap()}, "trap.ckpt")
    trainer = Trainer(
        accelerator="cpu", max_steps=1, logger=False, enable_progress_bar=False, callbacks=[OrderlyEnd()],
        enable_checkpointing=False, enable_model_summary=False,
    )  # fmt: skip
    with pytest.raises(UserError, match=r"trap.ckpt holds more than tensors .* `--weights_only false`"):
        trainer.fit(Line(), DataLoader(torch.ones(1, 1)), ckpt_path="trap.ckpt")
    assert not Path("trapped").exists()
    Path("cut.ckpt").write_bytes(Path("trap.ckpt").read_bytes()[:-50])
    with pytest.raises(UserError, match=r"cut.ckpt cannot be read"):
        WholeCheckpoints().load_checkpoint("cut.ckpt")
