"""Reading runs back: what is there, what is half there, and what is not."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import yaml

from lit_align.errors import UserError
from lit_align.report.runs import last_metrics, read_group


def make_run(
    folder: Path, method: str = "lit_align.methods.DPO", architecture: str | None = None, **config: Any
) -> None:
    folder.mkdir(parents=True)
    model = {"class_path": method, "init_args": {"policy": {"path": "p", "init": "pretrained"}}}
    (folder / "config.yaml").write_text(yaml.safe_dump({"model": model, **config}))
    if architecture:
        (folder / "model").mkdir()
        (folder / "model" / "config.json").write_text(json.dumps({"architectures": [architecture]}))


def test_runs_come_in_the_order_in_which_they_were_started(tmp_path: Path):
    for age, name in enumerate(["dpo", "sft", "reward"]):
        make_run(tmp_path / name)
        os.utime(tmp_path / name / "config.yaml", (1000 - age, 1000 - age))
    (tmp_path / "not_a_run").mkdir()
    assert [run.name for run in read_group(tmp_path)] == ["reward", "sft", "dpo"]


def test_what_a_run_says_of_itself(tmp_path: Path):
    make_run(
        tmp_path / "a", data={"init_args": {"train": "mini_instruct"}}, architecture="LlamaForSequenceClassification"
    )
    (tmp_path / "a" / "metrics.csv").write_text("epoch,step,train/loss,val/loss\n0,0,2.0,\n0,1,1.0,\n0,1,,0.5\n")
    make_run(tmp_path / "b", method="mine.Method", data={"init_args": {"train": ["mini_instruct", "more.jsonl"]}})
    a, b = sorted(read_group(tmp_path), key=lambda run: run.name)
    assert (a.method, a.starts_from, a.is_reward_model, a.trains_on_mini_instruct) == ("DPO", "p", True, True)
    assert a.metrics == {"train/loss": 1.0, "val/loss": 0.5}
    assert (b.method, b.architectures, b.is_reward_model, b.trains_on_mini_instruct) == ("Method", [], False, False)
    assert b.metrics == {}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", {}),
        ("step,train/loss\n", {}),
        ("step,train/loss\n0,0.5\n1,", {"train/loss": 0.5}),
        ("step,train/loss\n0,0.5\n1", {"train/loss": 0.5}),
        ("step,train/loss\n0,0.5\n1,0.2", {"train/loss": 0.5}),
        ("step,train/loss\n0,0.5\n\x00\x00", {"train/loss": 0.5}),
    ],
)
def test_of_half_written_metrics_the_whole_lines_count(tmp_path: Path, text: str, expected: dict[str, float]):
    (tmp_path / "metrics.csv").write_text(text)
    assert last_metrics(tmp_path / "metrics.csv") == expected


def test_what_is_no_group_is_a_sentence(tmp_path: Path):
    with pytest.raises(UserError, match=r"holds no run\. `lit-align fit --run"):
        read_group(tmp_path)
    make_run(tmp_path / "quickstart" / "sft")
    with pytest.raises(UserError, match=r"There is no folder .*quikstart; did you mean '.*quickstart'\?"):
        read_group(tmp_path / "quikstart")
    with pytest.raises(
        UserError, match=r"sft is one run; `compare` takes the folder that holds several, here .*quickstart\."
    ):
        read_group(tmp_path / "quickstart" / "sft")


@pytest.mark.parametrize("text", ["", "a: [", "model: {}", "trainer: {}"])
def test_a_broken_config_is_a_sentence(tmp_path: Path, text: str):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "config.yaml").write_text(text)
    with pytest.raises(UserError, match=r"config.yaml is not the config of a run"):
        read_group(tmp_path)
