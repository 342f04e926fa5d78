"""A run that is asked to stop: where it stops, what it saves, what it says, and that it goes on bit for bit."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from lightning.pytorch import Callback, Trainer, seed_everything
from lightning.pytorch.callbacks import ModelCheckpoint

from lit_align.data import SFTData
from lit_align.methods import SFT
from lit_align.models import ModelConfig
from lit_align.runtime import Stopped
from lit_align.runtime.orderly_end import how_to_go_on

pytestmark = pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty")
ROOT = Path(__file__).parents[2]
SMALL = {"hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2, "num_key_value_heads": 2}


class Strike(Callback):
    """Sends signals to this process while it is in a batch, as whoever stops a run does at no particular moment."""

    def __init__(self, batch: int, *numbers: int) -> None:
        self.batch, self.numbers = batch, numbers

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if batch_idx == self.batch and trainer.current_epoch == 0:
            for number in self.numbers:
                os.kill(os.getpid(), number)


class Fail(Callback):
    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if batch_idx == 3:
            raise ConnectionError("the judge is dead")


def run(folder: Path, *callbacks: Callback, saver: dict | None = None, resume: bool = False, **more: object) -> Trainer:
    """Two epochs of eight batches with dropout, two of them accumulated."""
    seed_everything(3 if resume else 7, verbose=False)
    module = SFT(
        ModelConfig("mini_instruct", init="random", overrides=SMALL, dropout=0.1),
        optimizer=lambda parameters: torch.optim.AdamW(parameters, lr=1e-2),
    )
    given = {"save_last": True, "every_n_train_steps": 3} if saver is None else saver
    trainer = Trainer(
        **{
            "accelerator": "cpu", "max_epochs": 2, "accumulate_grad_batches": 2, "logger": False,
            "enable_progress_bar": False, "enable_model_summary": False, "default_root_dir": folder,
            "callbacks": [*callbacks, ModelCheckpoint(folder / "checkpoints", **given)], **more,
        }
    )  # fmt: skip
    data = SFTData(train="mini_instruct", max_rows=30, batch_size=4, num_workers=0)
    trainer.fit(module, data, ckpt_path=folder / "checkpoints" / "last.ckpt" if resume else None)
    return trainer


def end(trainer: Trainer) -> dict[str, torch.Tensor]:
    return trainer.lightning_module.state_dict()


@pytest.mark.parametrize(
    ("number", "code", "saver"),
    [
        (signal.SIGTERM, 143, None),
        (signal.SIGINT, 130, {"save_last": "link", "every_n_train_steps": 1}),
        (signal.SIGTERM, 143, {"save_top_k": 0}),
    ],
)
def test_it_saves_at_the_end_of_the_step_and_goes_on_bit_for_bit(number, code, saver, tmp_path, capfd):
    whole = end(run(tmp_path / "whole"))
    before = [signal.getsignal(each) for each in (signal.SIGTERM, signal.SIGINT)]
    folder = tmp_path / "stopped"
    with pytest.raises(Stopped) as stopped:
        run(folder, Strike(4, number), saver=saver)
    assert stopped.value.code == code
    assert [signal.getsignal(each) for each in (signal.SIGTERM, signal.SIGINT)] == before

    last = folder / "checkpoints" / "last.ckpt"
    assert torch.load(last, weights_only=True)["global_step"] == 3  # batches 4 and 5 are one step
    said = capfd.readouterr()
    assert f"{signal.Signals(number).name}: the run stops after this step." in said.err
    assert (
        f"Stopped by {signal.Signals(number).name} after step 3. To take it up again, go on with `trainer.fit("
        in said.out
    )

    resumed = end(run(folder, resume=True, saver=saver))
    assert resumed.keys() == whole.keys()
    for key, value in whole.items():
        assert torch.equal(resumed[key], value), key
    assert not list(last.parent.glob("last-v*"))


def test_a_second_ctrl_c_ends_at_once(tmp_path, capfd):
    with pytest.raises(Stopped) as stopped:
        run(tmp_path, Strike(4, signal.SIGINT, signal.SIGINT))
    assert stopped.value.code == 130
    assert not (tmp_path / "checkpoints" / "last.ckpt").exists()
    assert "Press Ctrl-C again to end at once." in capfd.readouterr().err
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_several_terms_are_one(tmp_path):
    with pytest.raises(Stopped) as stopped:
        run(tmp_path, Strike(0, signal.SIGTERM, signal.SIGTERM))
    assert stopped.value.code == 143
    assert torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)["global_step"] == 1


def test_where_nothing_may_be_saved_it_says_so(tmp_path, capfd):
    with pytest.raises(Stopped):
        run(tmp_path, Strike(0, signal.SIGTERM), enable_checkpointing=False, callbacks=[Strike(0, signal.SIGTERM)])
    assert "checkpoints are switched off, so nothing was saved." in capfd.readouterr().out


def test_after_an_error_it_says_how_to_go_on(tmp_path, capfd):
    with pytest.raises(ConnectionError, match="the judge is dead"):
        run(tmp_path, Fail())
    assert "There is no checkpoint to go on from: `every_n_train_steps`" in capfd.readouterr().out
    with pytest.raises(ConnectionError, match="the judge is dead"):
        run(tmp_path, Fail(), saver={"save_last": True, "every_n_train_steps": 1})
    said = capfd.readouterr().out
    assert "The run failed after step 1. Once the cause is put right, go on with" in said
    assert f'ckpt_path="{tmp_path / "checkpoints" / "last.ckpt"}")' in said


def test_the_command_of_a_run_folder(tmp_path):
    trainer = Trainer(accelerator="cpu", logger=False, default_root_dir=tmp_path)
    (tmp_path / "config.yaml").touch()
    command = f"go on with: lit-align fit --config {tmp_path}/config.yaml --ckpt_path"
    assert how_to_go_on(trainer, tmp_path / "checkpoints" / "last.ckpt") == f"{command} last"
    other = tmp_path / "checkpoints" / "step=3.ckpt"
    assert how_to_go_on(trainer, other) == f"{command} {other}"


class StrikeSecond(Strike):
    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if trainer.global_rank == 1:
            super().on_train_batch_start(trainer, pl_module, batch, batch_idx)


def stopped_on_both(folder: str) -> tuple[int, int]:
    """The exit code of this rank, and the step at which it stopped."""
    trainer = None

    class Remember(Callback):
        def setup(self, of: Trainer, pl_module, stage):
            nonlocal trainer
            trainer = of

    try:
        run(Path(folder), Remember(), StrikeSecond(2, signal.SIGTERM), devices=2, strategy="ddp")
    except Stopped as stopped:
        return int(stopped.code), trainer.global_step
    return 0, -1


def test_a_signal_to_one_rank_stops_both(on_two_ranks, tmp_path):
    assert on_two_ranks(stopped_on_both, str(tmp_path)) == [(143, 2), (143, 2)]
    assert torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)["global_step"] == 2


STRIKERS = """
import os, signal
from lit_align.feedback import MiniInstructGold

class Reward(MiniInstructGold):
    def score_rollout(self, answers):
        if os.environ.get("STRIKE"):
            self.calls = getattr(self, "calls", 0) + 1
            if self.calls == 3:
                os.kill(os.getpid(), int(os.environ["STRIKE"]))
        return super().score_rollout(answers)
"""


@pytest.mark.slow
def test_a_run_that_is_stopped_in_a_rollout_goes_on_bit_for_bit(quickstart_models, tmp_path):
    (tmp_path / "strikers.py").write_text(STRIKERS)
    given = yaml.safe_load((ROOT / "configs" / "quickstart" / "ppo_gold.yaml").read_text())
    given["trainer"] |= {"max_epochs": 2, "log_every_n_steps": 1, "enable_progress_bar": False}
    given["data"]["init_args"] |= {"max_rows": 48, "batch_size": 8, "val": None}
    given["model"]["init_args"]["policy"]["path"] = str(quickstart_models / "sft")
    given["model"]["init_args"]["reward"] = {"class_path": "strikers.Reward"}
    (tmp_path / "ppo.yaml").write_text(yaml.safe_dump(given))
    environment = os.environ | {"OMP_NUM_THREADS": "1", "WANDB_MODE": "offline", "PYTHONPATH": f"{tmp_path}:{ROOT}"}

    def lit_align(name: str, strike: str, *more: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "lit_align", "fit", "--config", "ppo.yaml", "--run", f"runs/{name}", *more]
        changed = environment | {"STRIKE": strike}
        return subprocess.run(command, cwd=tmp_path, env=changed, capture_output=True, text=True, check=False)

    assert lit_align("whole", "").returncode == 0
    stopped = lit_align("stopped", str(int(signal.SIGTERM)))
    assert stopped.returncode == 143, stopped.stderr
    assert "go on with: lit-align fit --config runs/stopped/config.yaml --ckpt_path last" in stopped.stdout
    assert "Traceback" not in stopped.stderr
    assert lit_align("stopped", "", "--ckpt_path", "last").returncode == 0
    last = [
        torch.load(tmp_path / "runs" / name / "checkpoints" / "last.ckpt", weights_only=True)
        for name in ("whole", "stopped")
    ]
    for key, value in last[0]["state_dict"].items():
        assert torch.equal(last[1]["state_dict"][key], value), key
