"""A group of runs that somebody might have trained, and somebody hostile might have written."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from browser import Browser

from lit_align.exact import FrontierPoint
from lit_align.report import Comparison, Result

HOSTILE = "</script><img src=x onerror=\"document.title='taken'\"><!-- <script> $data &amp; \u2028"


@pytest.fixture
def hostile() -> str:
    """A text that takes over a page which shows it as markup."""
    return HOSTILE


@pytest.fixture
def group(tmp_path: Path) -> Path:
    """Three runs: `sft` and `ppo` with curves, `ppo` with samples, `reward` with nothing but its config."""
    folder = tmp_path / "my group"
    for method, name in (("SFT", "sft"), ("PPO", "ppo"), ("RewardModel", "reward")):
        (folder / name).mkdir(parents=True)
        (folder / name / "config.yaml").write_text(f"model:\n  class_path: {method}\n# {HOSTILE}\n", encoding="utf-8")
    (folder / "sft" / "metrics.csv").write_text(
        "epoch,step,train/loss,val/accuracy\n"
        + "".join(f"0,{step},{4 - step / 50},\n" for step in range(0, 100, 2))
        + "0,49,,0.5\n1,99,,0.75\n"
    )
    (folder / "ppo" / "metrics.csv").write_text("step,val/accuracy\n9,0.25\n19,nan\n29,inf\n39,0.5\n")
    rows = [
        {"step": 10, "prompt": "old", "response": "of an earlier step", "score": 0.0, "kl": 0.0, "finished": True},
        {"step": 20, "prompt": HOSTILE, "response": HOSTILE, "score": 1.5, "kl": -0.25, "finished": True},
        {
            "step": 20,
            "prompt": "tell me about birds",
            "response": "lovely birds",
            "score": 2.0,
            "kl": 0.5,
            "finished": False,
        },
        {"step": 20, "prompt": "tell me about birds", "response": "awful birds", "score": float("nan"), "kl": None},
    ]
    lines = "\n".join(json.dumps(row, ensure_ascii=False) for row in rows)
    (folder / "ppo" / "samples.jsonl").write_text(lines + '\n{"step": 30, "prom', encoding="utf-8")
    return folder


@pytest.fixture
def comparison() -> Comparison:
    """What the runs of `group` reached, in the order in which a group is read."""
    return Comparison(
        reference_gold=0.0,
        frontier=[
            FrontierPoint(beta, kl, 2 * kl**0.5) for beta, kl in ((2.0, 0.25), (1.0, 1.0), (0.5, 4.0), (0.1, 9.0))
        ],
        results=[
            Result("ppo", "PPO", gold=1.5, kl=1.0, frontier_gold=2.0, efficiency=0.75, win_rate=0.875),
            Result("reward", "RewardModel", accuracy=float("nan")),
            Result("sft", "SFT", gold=0.0, kl=0.0, frontier_gold=0.0, win_rate=0.5),
        ],
        best_accuracy=0.775,
        win_rates={"ppo": {"sft": 0.875}, "sft": {"ppo": 0.125}},
        remarks=[f"ppo: {HOSTILE}"],
    )


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    """Chromium; where it or its driver is missing, the test is skipped."""
    chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    driver = shutil.which("chromedriver")
    if chromium is None or driver is None:
        pytest.skip("no chromium and chromedriver: `apt-get install chromium chromium-driver`")
    with Browser(driver, chromium) as window:
        yield window
