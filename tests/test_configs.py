"""Every YAML in configs/ builds its module, data and Trainer, and takes two training steps."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from lit_align.__main__ import main
from lit_align.data.mini_instruct import groups

# Lightning calls what jsonargparse has deprecated, and advises on workers (2026-11).
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning", "ignore::DeprecationWarning")

ROOT = Path(__file__).parents[1]
EMBEDDED = ("quickstart", "assistant")
CONFIGS = sorted(path for path in (ROOT / "configs").rglob("*.yaml") if path.parent.name in EMBEDDED)
"""Those that need no download; `test_recipes.py` runs the others."""


def test_there_are_configs():
    assert len(CONFIGS) >= 8


def paths_in(arguments: Any, name: str) -> Iterator[tuple[str, str]]:
    """Where models come from: the arguments called `path`, by their names on the command line."""
    if isinstance(arguments, Mapping):
        if isinstance(arguments.get("path"), str):
            yield f"{name}.path", arguments["path"]
        for key, value in arguments.items():
            yield from paths_in(value, f"{name}.{key}")


@pytest.fixture(scope="session")
def preferences(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file as `generate | annotate` would have left it in runs/."""
    file = tmp_path_factory.mktemp("rows") / "preferences.jsonl"
    rows = [
        {"prompt": g.prompt, "chosen": g.responses[0], "rejected": g.responses[1]} for g in groups("preference", 64)
    ]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


@pytest.mark.parametrize("config", CONFIGS, ids=lambda path: str(path.relative_to(ROOT / "configs")))
def test_config_takes_two_steps(config, quickstart_models, preferences, tmp_path, monkeypatch):
    given = yaml.safe_load(config.read_text())
    group, name = config.parent.name, config.stem
    assert given["run"] == f"runs/{group}/{name}"
    changed = ["--trainer.fast_dev_run=2", "--data.max_rows=64"]
    for argument, path in paths_in(given["model"]["init_args"], "model"):
        if path.startswith("runs/"):
            changed.append(f"--{argument}={quickstart_models / Path(path).parent.name}")
    if str(given["data"]["init_args"]["train"]).startswith("runs/"):
        changed.append(f"--data.train={preferences}")
    if "prompts_per_round" in given["model"]["init_args"]:
        changed += ["--model.prompts_per_round=[16,16,16]", "--data.batch_size=16"]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["lit-align", "fit", "--config", str(config), *changed])
    assert main() == 0
    assert not list(tmp_path.iterdir())
