"""A thousand broken configs: each builds what it says, or is refused with one sentence; none ends in a traceback."""

from __future__ import annotations

import random
import sys
import traceback
from pathlib import Path
from typing import Any

import mutations
import pytest
import torch
import yaml
from lightning.pytorch import Trainer

from lit_align.__main__ import main

# Lightning calls what jsonargparse has deprecated, and advises (2026-11).
pytestmark = [
    pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning", "ignore::DeprecationWarning"),
    pytest.mark.timeout(1800),
]
ROOT = Path(__file__).parents[1]
CONFIGS = sorted((ROOT / "configs" / "quickstart").glob("*.yaml"))


def keys(value: Any) -> set[str]:
    """Every key of a nested value."""
    if isinstance(value, dict):
        return {str(key) for key in value}.union(*map(keys, value.values()))
    return set().union(*map(keys, value)) if isinstance(value, list) else set()


@pytest.mark.parametrize("number", [40, pytest.param(1000, marks=pytest.mark.slow)])
def test_a_config_is_built_or_refused(
    number: int,
    quickstart_models: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    fitted = []
    monkeypatch.setattr(Trainer, "fit", lambda *args, **kwargs: fitted.append(args))
    (tmp_path / "runs" / "quickstart").mkdir(parents=True)
    for name in ("sft", "reward"):
        (tmp_path / "runs" / "quickstart" / name).mkdir()
        (tmp_path / "runs" / "quickstart" / name / "model").symlink_to(quickstart_models / name)
    wholes = [yaml.safe_load(file.read_text()) for file in CONFIGS]
    names = tuple(sorted(set().union(*map(keys, wholes))))
    draw = random.Random(number)
    threads = torch.get_num_threads()
    refused, wrong = 0, []
    for place in range(number):
        config = mutations.mutated(draw.choice(wholes), draw, names)
        if isinstance(config, dict) and isinstance(config.get("run"), str):
            config["run"] = f"runs/fuzz/{place}"
        file = tmp_path / f"{place}.yaml"
        file.write_text(yaml.safe_dump(config, sort_keys=False), encoding="utf-8")
        monkeypatch.setattr(sys, "argv", ["lit-align", "fit", "--config", str(file)])
        try:
            end = main()
        except SystemExit as exit_:
            end = int(exit_.code or 0)
        except BaseException as error:
            end = "".join(traceback.format_exception(error)[-4:])
        torch.set_num_threads(threads)
        printed = capsys.readouterr().err
        complaints = [line for line in printed.splitlines() if line.startswith("error: ")]
        refused += end == 2
        if "Traceback" in printed or (end, len(complaints)) not in ((0, 0), (2, 1)):
            wrong.append(f"{end}\n{printed}\nfor this config:\n{file.read_text()}")
    assert not wrong, f"{len(wrong)} of {number}\n" + "\n".join(wrong[:20])
    assert refused + len(fitted) == number
    assert refused > number // 4
    assert fitted
