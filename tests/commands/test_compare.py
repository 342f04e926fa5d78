"""`compare` on a group: what it prints, and what it writes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from lit_align import report
from lit_align.commands.compare import compare
from lit_align.errors import UserError
from lit_align.exact import FrontierPoint
from lit_align.report import Comparison, Result, Run


def make_run(folder: Path, train: str, metrics: str = "") -> None:
    folder.mkdir(parents=True)
    config = {"model": {"class_path": "lit_align.methods.DPO"}, "data": {"init_args": {"train": train}}}
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    if metrics:
        (folder / "metrics.csv").write_text(metrics)


def test_runs_on_other_data_show_what_they_logged(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    make_run(tmp_path / "g" / "a", "rows.jsonl", "step,train/loss,val/rewards/accuracy\n0,0.7,\n1,,0.625\n")
    make_run(tmp_path / "g" / "b", "rows.jsonl")
    compare(tmp_path / "g")
    printed = capsys.readouterr().out
    assert any(line.split() == ["val/rewards/accuracy", "0.625", "–"] for line in printed.splitlines())
    assert "Note: b has logged nothing yet." in printed
    assert not (tmp_path / "g" / "frontier.png").exists()
    written = json.loads((tmp_path / "g" / "report.json").read_text())
    assert written["reference"] == {"gold": None}
    assert written["frontier"] == []
    assert [run["name"] for run in written["runs"]] == ["a", "b"]
    assert set(written["runs"][0].values()) == {"a", "DPO", None}


def test_runs_on_mini_instruct_are_measured_and_drawn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    def measured(runs: list[Run], on_progress: object) -> Comparison:
        dpo = Result(runs[0].name, "DPO", gold=1.0, kl=0.7, frontier_gold=1.3, efficiency=0.8125, win_rate=0.75)
        return Comparison(-0.3, [FrontierPoint(1.0, 0.7, 1.3)], [dpo], None, ["dpo: 4 % leaked."])

    monkeypatch.setattr(report, "compare_exactly", measured)
    make_run(tmp_path / "g" / "dpo", "mini_instruct")
    compare(tmp_path / "g")
    printed = capsys.readouterr().out
    assert any(
        line.split() == ["dpo", "DPO", "1.000", "0.700", "1.300", "81.2%", "75.0%", "–"]
        for line in printed.splitlines()
    )
    assert "Note: dpo: 4 % leaked." in printed
    assert "Last logged" not in printed
    assert (tmp_path / "g" / "frontier.png").stat().st_size > 10_000
    assert json.loads((tmp_path / "g" / "report.json").read_text()) == {
        "reference": {"gold": -0.3},
        "frontier": [{"beta": 1.0, "kl": 0.7, "gold": 1.3}],
        "runs": [
            {
                "name": "dpo",
                "method": "DPO",
                "gold": 1.0,
                "kl": 0.7,
                "frontier_gold": 1.3,
                "efficiency": 0.8125,
                "win_rate": 0.75,
                "accuracy": None,
            }
        ],
        "win_rates": {},
    }


def test_no_runs_is_a_sentence(tmp_path: Path):
    with pytest.raises(UserError, match="There is no folder"):
        compare(tmp_path / "g")
    (tmp_path / "g").mkdir()
    with pytest.raises(UserError, match="holds no run"):
        compare(tmp_path / "g")
