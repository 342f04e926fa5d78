"""Every YAML in configs/ builds its module, data and Trainer, and takes two training steps."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import yaml

from lit_align.__main__ import main

# Lightning calls what jsonargparse has deprecated, and advises on workers (2026-11).
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning", "ignore::DeprecationWarning")

ROOT = Path(__file__).parents[1]
CONFIGS = sorted((ROOT / "configs").rglob("*.yaml"))


def test_there_are_configs():
    assert len(CONFIGS) >= 8


@pytest.mark.parametrize("config", CONFIGS, ids=lambda path: str(path.relative_to(ROOT / "configs")))
def test_config_takes_two_steps(config, quickstart_models, tmp_path, monkeypatch):
    given = yaml.safe_load(config.read_text())
    group, name = config.parent.name, config.stem
    assert given["run"] == f"runs/{group}/{name}"
    changed = ["--trainer.fast_dev_run=2", "--data.max_rows=64"]
    if given["model"]["init_args"]["policy"]["path"] != "mini_instruct":
        changed.append(f"--model.policy.path={quickstart_models / 'sft'}")
    if "RewardModelReward" in config.read_text():
        changed.append(f"--model.reward.model.path={quickstart_models / 'reward'}")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["lit-align", "fit", "--config", str(config), *changed])
    assert main() == 0
    assert not list(tmp_path.iterdir())
