"""A run that is killed goes on from its last checkpoint by the command line, and ends where it would have ended."""

from __future__ import annotations

import csv
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
ROOT = Path(__file__).parents[1]


def command(name: str, quickstart_models: Path, run: Path, *more: str) -> list[str]:
    """A quickstart config on 96 rows, with a checkpoint at every step; 36 steps, 32 of SPA, of its seed and three rounds."""
    given = yaml.safe_load((ROOT / "configs" / "quickstart" / f"{name}.yaml").read_text())
    given["trainer"]["callbacks"] = [
        {"class_path": "ModelCheckpoint", "init_args": {"save_last": True, "every_n_train_steps": 1, "save_top_k": 1}}
    ]
    epochs = 1 if name == "spa" else 3
    given["trainer"] |= {"max_epochs": epochs, "log_every_n_steps": 1, "enable_progress_bar": False}
    given["data"]["init_args"] |= {"max_rows": 96, "batch_size": 8, "val": None}
    model = given["model"]["init_args"]
    if name != "sft":
        model["policy"]["path"] = str(quickstart_models / "sft")
    for source in ("reward", "judge"):
        if "model" in model.get(source, {}).get("init_args", {}):
            model[source]["init_args"]["model"]["path"] = str(quickstart_models / "reward")
    if name == "spa":
        model["prompts_per_round"] = [32, 32, 32]
        model["seed"]["data"]["init_args"] |= {"max_rows": 32, "batch_size": 8}
    config = run.parent / f"{name}.yaml"
    config.write_text(yaml.safe_dump(given))
    return [sys.executable, "-m", "lit_align", "fit", "--config", str(config), "--run", str(run), *more]


KILLERS = """
import os, signal
from dataclasses import dataclass
from lit_align.feedback import MiniInstructGold
from lit_align.losses import PPOLoss

calls = {"rollout": 0, "update": 0}


def strike(where):
    calls[where] += 1
    if os.environ.get("KILL") == f"{where} {calls[where]}":
        os.kill(os.getpid(), signal.SIGKILL)


class Reward(MiniInstructGold):
    def score_rollout(self, answers):
        strike("rollout")
        return super().score_rollout(answers)


@dataclass(frozen=True)
class Loss(PPOLoss):
    def __call__(self, *args):
        strike("update")
        return super().__call__(*args)
"""


@pytest.mark.parametrize("when", ["rollout 3", "update 14"])
def test_ppo_killed_in_rollout_or_update_says_the_same(when, quickstart_models, tmp_path):
    """Parameters, KL coefficient, metrics and sampled text, killed at a chosen line and not at a chosen moment."""
    (tmp_path / "killers.py").write_text(KILLERS)
    environment = os.environ | {"OMP_NUM_THREADS": "1", "WANDB_MODE": "disabled", "PYTHONPATH": str(tmp_path)}
    adaptive = ["--model.kl=lit_align.losses.AdaptiveKL", "--model.kl.beta=0.1", "--model.kl.target=0.5"]
    arguments = [
        "--model.reward=killers.Reward", "--model.loss=killers.Loss", *adaptive, "--model.kl.horizon=100",
        "--model.log_samples_every=1",
    ]  # fmt: skip

    def run(name: str, kill: str, *more: str) -> int:
        start = command("ppo_gold", quickstart_models, tmp_path / name, *arguments, *more)
        return subprocess.run(start, check=False, capture_output=True, env=environment | {"KILL": kill}).returncode

    assert run("whole", "") == 0
    assert run("killed", when) == -signal.SIGKILL
    assert run("killed", "", "--ckpt_path=last") == 0

    def end(name: str) -> dict:
        state = torch.load(tmp_path / name / "checkpoints" / "last.ckpt", weights_only=True)
        state["ppo"]["rollout_metrics"] = without_seconds(state["ppo"]["rollout_metrics"])
        return state

    whole, killed = end("whole"), end("killed")
    assert whole["global_step"] == killed["global_step"]
    assert whole["ppo"] == killed["ppo"]
    assert whole["ppo"]["kl"]["beta"] != 0.1
    for key, value in whole["state_dict"].items():
        assert torch.equal(killed["state_dict"][key], value), key
    assert (tmp_path / "whole" / "samples.jsonl").read_text() == (tmp_path / "killed" / "samples.jsonl").read_text()
    assert metrics(tmp_path / "whole") == metrics(tmp_path / "killed")


def metrics(run: Path) -> list[dict[str, str]]:
    """All that was logged but the seconds."""
    with (run / "metrics.csv").open() as rows:
        return [without_seconds(row) for row in csv.DictReader(rows)]


def without_seconds(metrics: dict) -> dict:
    return {name: value for name, value in metrics.items() if "time/" not in name}


def steps_logged(run: Path) -> int:
    try:
        with (run / "metrics.csv").open() as rows:
            return sum(1 for row in csv.DictReader(rows) if row.get("step"))
    except OSError:
        return 0


@pytest.mark.parametrize("name", ["sft", "reward", "dpo", "ppo"])
def test_a_killed_run_goes_on_bit_for_bit(name, quickstart_models, tmp_path):
    environment = os.environ | {"OMP_NUM_THREADS": "1", "WANDB_MODE": "disabled"}

    def finish(*arguments: str) -> None:
        done = subprocess.run(arguments, check=False, capture_output=True, text=True, env=environment)
        assert done.returncode == 0, done.stderr[-3000:]

    whole, killed = tmp_path / "whole", tmp_path / "killed"
    finish(*command(name, quickstart_models, whole))
    expected = torch.load(whole / "checkpoints" / "last.ckpt", weights_only=True)

    process = subprocess.Popen(
        command(name, quickstart_models, killed), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment
    )
    while steps_logged(killed) < 7 and process.poll() is None:
        time.sleep(0.02)
    assert process.poll() is None, "the run ended before it could be killed"
    process.send_signal(signal.SIGKILL)
    process.wait()
    step = torch.load(killed / "checkpoints" / "last.ckpt", weights_only=True)["global_step"]
    assert 0 < step < expected["global_step"]

    finish(*command(name, quickstart_models, killed, "--ckpt_path=last"))
    resumed = torch.load(killed / "checkpoints" / "last.ckpt", weights_only=True)
    assert resumed["global_step"] == expected["global_step"]
    for key, value in expected["state_dict"].items():
        assert torch.equal(resumed["state_dict"][key], value), key


KILLS = 6


@pytest.mark.parametrize(
    ("name", "ranks"),
    [
        *((name, 1) for name in ("sft", "reward", "dpo", "kto", "ppo", "online_dpo", "rrhf_online", "spa")),
        ("dpo", 2),
        ("ppo", 2),
    ],
)
def test_killed_again_and_again_it_ends_as_if_it_never_was(name, ranks, quickstart_models, tmp_path):
    """Killed at moments that nobody chose, in the middle of starting, of a step, or of writing a checkpoint."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "WANDB_MODE": "disabled"}
    draw = random.Random(f"{name} {ranks}")
    devices = [f"--trainer.devices={ranks}", *(["--trainer.strategy=ddp"] if ranks > 1 else [])]

    def start(run: str, *more: str) -> subprocess.Popen:
        with (tmp_path / "stderr").open("w") as stderr:
            return subprocess.Popen(
                command(name, quickstart_models, tmp_path / run, *devices, *more),
                stdout=subprocess.DEVNULL,
                stderr=stderr,
                env=environment,
                start_new_session=True,  # so that a kill meets every rank
            )

    def finish(process: subprocess.Popen) -> None:
        assert process.wait(600) == 0, (tmp_path / "stderr").read_text()[-3000:]

    finish(start("whole"))
    last = tmp_path / "killed" / "checkpoints" / "last.ckpt"
    kills = 0
    for _ in range(KILLS):
        before = last.stat().st_mtime_ns if last.exists() else 0
        process = start("killed", "--ckpt_path=last" if before else "--overwrite=true")
        while (not last.exists() or last.stat().st_mtime_ns == before) and process.poll() is None:
            time.sleep(0.02)
        time.sleep(draw.uniform(0, 0.2))
        kills += process.poll() is None
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    assert kills == KILLS, f"{(tmp_path / 'stderr').read_text()[-3000:]}"
    process = start("killed", "--ckpt_path=last")
    time.sleep(draw.uniform(0, 4))
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    finish(start("killed", "--ckpt_path=last"))

    expected = torch.load(tmp_path / "whole" / "checkpoints" / "last.ckpt", weights_only=True)
    resumed = torch.load(last, weights_only=True)
    assert resumed["global_step"] == expected["global_step"] > KILLS
    for key, value in expected["state_dict"].items():
        assert torch.equal(resumed["state_dict"][key], value), key
    # Lightning logs a step after its checkpoint, so that a kill between the two takes the row of that step with it.
    logged, logged_whole = metrics(tmp_path / "killed"), metrics(tmp_path / "whole")
    assert [row for row in logged if row not in logged_whole] == []
    assert len(logged_whole) - len(logged) <= KILLS + 1
