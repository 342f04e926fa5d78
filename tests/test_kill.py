"""A run that is killed goes on from its last checkpoint by the command line, and ends where it would have ended."""

from __future__ import annotations

import csv
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml
from lightning.pytorch import seed_everything

from lit_align.methods import SFT, RewardModel
from lit_align.models import ModelConfig

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
ROOT = Path(__file__).parents[1]
SMALL = {"hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2, "num_key_value_heads": 2}


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    seed_everything(0, verbose=False)
    sft = SFT(ModelConfig("mini_instruct", init="random", overrides=SMALL))
    sft.configure_model()
    sft.export(folder / "sft")
    reward = RewardModel(ModelConfig(str(folder / "sft")))
    reward.configure_model()
    reward.export(folder / "reward")
    return folder


def command(name: str, models: Path, run: Path, *more: str) -> list[str]:
    """A quickstart config on 96 rows, with a checkpoint at every step."""
    given = yaml.safe_load((ROOT / "configs" / "quickstart" / f"{name}.yaml").read_text())
    given["trainer"]["callbacks"] = [
        {"class_path": "ModelCheckpoint", "init_args": {"save_last": True, "every_n_train_steps": 1, "save_top_k": 1}}
    ]
    given["trainer"] |= {"max_epochs": 3, "log_every_n_steps": 1, "enable_progress_bar": False}
    given["data"]["init_args"] |= {"max_rows": 96, "batch_size": 8, "val": None}
    if name != "sft":
        given["model"]["init_args"]["policy"]["path"] = str(models / "sft")
    if name == "ppo":
        given["model"]["init_args"]["reward"]["init_args"]["model"]["path"] = str(models / "reward")
    config = run.parent / f"{name}.yaml"
    config.write_text(yaml.safe_dump(given))
    return [sys.executable, "-m", "lit_align", "fit", "--config", str(config), "--run", str(run), *more]


def steps_logged(run: Path) -> int:
    try:
        with (run / "metrics.csv").open() as rows:
            return sum(1 for row in csv.DictReader(rows) if row.get("step"))
    except OSError:
        return 0


@pytest.mark.parametrize("name", ["sft", "reward", "dpo", "ppo"])
def test_a_killed_run_goes_on_bit_for_bit(name, models, tmp_path):
    environment = os.environ | {"OMP_NUM_THREADS": "1", "WANDB_MODE": "disabled"}

    def finish(*arguments: str) -> None:
        done = subprocess.run(arguments, check=False, capture_output=True, text=True, env=environment)
        assert done.returncode == 0, done.stderr[-3000:]

    whole, killed = tmp_path / "whole", tmp_path / "killed"
    finish(*command(name, models, whole))
    expected = torch.load(whole / "checkpoints" / "last.ckpt", weights_only=True)

    process = subprocess.Popen(
        command(name, models, killed), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment
    )
    while steps_logged(killed) < 7 and process.poll() is None:
        time.sleep(0.02)
    assert process.poll() is None, "the run ended before it could be killed"
    process.send_signal(signal.SIGKILL)
    process.wait()
    step = torch.load(killed / "checkpoints" / "last.ckpt", weights_only=True)["global_step"]
    assert 0 < step < expected["global_step"]

    finish(*command(name, models, killed, "--ckpt_path=last"))
    resumed = torch.load(killed / "checkpoints" / "last.ckpt", weights_only=True)
    assert resumed["global_step"] == expected["global_step"]
    for key, value in expected["state_dict"].items():
        assert torch.equal(resumed["state_dict"][key], value), key
