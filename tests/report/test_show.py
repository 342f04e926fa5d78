"""The table has what people look for, and the picture can be drawn whatever the runs reached."""

from __future__ import annotations

import io
from pathlib import Path

import matplotlib.image
import pytest
from rich.console import Console

from lit_align.exact import FrontierPoint
from lit_align.report.exact import Comparison, Result
from lit_align.report.runs import Run
from lit_align.report.show import draw_frontier, print_metrics, print_table
from lit_align.runtime.run_folder import RunFolder

FRONTIER = [FrontierPoint(1.0, 0.7, 1.3), FrontierPoint(0.5, 2.0, 2.2), FrontierPoint(0.1, 7.0, 3.4)]
SFT = Result("sft", "SFT", gold=-0.3, kl=0.0, frontier_gold=-0.3, win_rate=0.5)
DPO = Result("dpo", "DPO", gold=1.0, kl=0.7, frontier_gold=1.3, efficiency=0.8125, win_rate=0.75)
REWARD = Result("reward", "RewardModel", accuracy=0.745)


def comparison(*results: Result) -> Comparison:
    return Comparison(-0.3, FRONTIER, list(results), 0.776, [])


def test_the_table_shows_every_run_on_eighty_columns():
    console = Console(file=io.StringIO(), width=80)
    print_table(comparison(SFT, DPO, REWARD), console)
    lines = console.file.getvalue().splitlines()
    (dpo,) = (line.split() for line in lines if " dpo " in line)
    assert dpo == ["dpo", "DPO", "1.000", "0.700", "1.300", "81.2%", "75.0%", "–"]
    (reward,) = (line.split() for line in lines if " RewardModel " in line)
    assert reward == ["reward", "RewardModel", "–", "–", "–", "–", "–", "74.5%"]
    assert max(map(len, lines)) <= 80
    assert "The best accuracy that any reward model can have is 77.6%." in console.file.getvalue()


def test_logged_metrics_are_those_of_validation_where_there_are_any():
    def run(name: str, metrics: dict[str, float]) -> Run:
        return Run(RunFolder(Path("runs/g") / name), {"model": {"class_path": "lit_align.methods.DPO"}}, metrics)

    console = Console(file=io.StringIO(), width=100)
    print_metrics([run("a", {"train/loss": 9.0, "val/loss": 0.5}), run("b", {"train/loss": 12345.678})], console)
    cells = [line.split() for line in console.file.getvalue().splitlines()]
    assert ["train/loss", "–", "1.235e+04"] in cells
    assert ["val/loss", "0.500", "–"] in cells


@pytest.mark.parametrize(
    "results",
    [
        [],
        [SFT],
        [SFT, DPO, REWARD],
        [Result(f"run{i}", "DPO", gold=1.0 - i / 10, kl=0.7, frontier_gold=1.3, efficiency=0.5) for i in range(9)],
        [Result("far", "PPO", gold=-5.0, kl=30.0, frontier_gold=3.4, efficiency=-1.0)],
    ],
)
def test_the_picture_is_drawn(tmp_path: Path, results: list[Result]):
    draw_frontier(comparison(*results), tmp_path / "frontier.png")
    height, width, _ = matplotlib.image.imread(tmp_path / "frontier.png").shape
    assert (width, height) == (1200, 750)
