"""Runs on mini_assistant, measured on samples."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import yaml

from lit_align.commands.compare import compare
from lit_align.data.mini_assistant.skills import SCORES
from lit_align.methods import SFT
from lit_align.models import ModelConfig
from lit_align.report import read_group
from lit_align.report.sampled import Estimate, estimate, measure_samples


def make_run(folder: Path, train: str | list[str], start: str | None = None, seed: int | None = None) -> None:
    """A run's folder; with a seed, with a small untrained model."""
    folder.mkdir(parents=True)
    policy = {"path": start} if start else {"path": "mini_assistant", "init": "random"}
    model = {"class_path": "lit_align.methods.SFT", "init_args": {"policy": policy}}
    (folder / "config.yaml").write_text(yaml.safe_dump({"model": model, "data": {"init_args": {"train": train}}}))
    (folder / "metrics.csv").write_text("step,train/loss\n0,0.7\n")
    if seed is not None:
        small = {"hidden_size": 8, "intermediate_size": 8, "num_attention_heads": 1, "num_key_value_heads": 1}
        torch.manual_seed(seed)
        module = SFT(ModelConfig("mini_assistant", init="random", overrides={**small, "num_hidden_layers": 1}))
        module.configure_model()
        module.export(folder / "model")


@pytest.mark.parametrize(
    ("train", "ours"),
    [
        ("mini_assistant", True),
        (["rows.jsonl", "mini_assistant:seed"], True),
        ("mini_instruct", False),
        ("mini_assistant.jsonl", False),
    ],
)
def test_which_runs_are_on_the_task(tmp_path: Path, train: str | list[str], ours: bool) -> None:
    make_run(tmp_path / "g" / "a", train)
    assert read_group(tmp_path / "g")[0].trains_on_mini_assistant is ours


def test_estimate_by_hand() -> None:
    # Two prompts, four samples each: means 1 and 3, variances 4/3 and 16/3, their mean 10/3 over eight samples.
    values = torch.tensor([0.0, 0.0, 2.0, 2.0, 1.0, 1.0, 5.0, 5.0])
    assert estimate(values) == pytest.approx((2.0, (10 / 3 / 8) ** 0.5))
    assert str(Estimate(1.234, 0.056)) == "1.23 ± 0.06"


def test_compare_samples_and_says_what_it_cannot(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    group = tmp_path / "g"
    make_run(group / "sft", "mini_assistant", seed=0)
    make_run(group / "dpo", ["mini_assistant:seed"], start=str(group / "sft" / "model"), seed=1)
    make_run(group / "unfinished", "mini_assistant")
    before = torch.random.get_rng_state()
    compare(group)
    assert torch.equal(before, torch.random.get_rng_state())
    written = json.loads((group / "report.json").read_text())
    sft, dpo = sorted(written["sampled"], key=lambda result: str(result["name"]), reverse=True)
    assert (sft["name"], dpo["name"]) == ("sft", "dpo")
    assert sft["kl"] == {"mean": 0.0, "std_error": 0.0}
    assert dpo["kl"]["mean"] > 3 * dpo["kl"]["std_error"] > 0  # two random models are far apart
    assert set(dpo["skills"]) == set(SCORES)
    assert sft["gold"]["mean"] < -3  # a random model writes nothing
    assert written["sampled_win_rates"]["sft"]["dpo"] + written["sampled_win_rates"]["dpo"]["sft"] == pytest.approx(1)
    printed = capsys.readouterr().out
    assert "mini_assistant" in printed
    assert "Note: unfinished has no exported model yet" in printed


def test_without_a_reference_there_is_no_kl(tmp_path: Path) -> None:
    make_run(tmp_path / "g" / "dpo", "mini_assistant", start="gone/sft/model", seed=0)
    config = tmp_path / "g" / "dpo" / "config.yaml"
    config.write_text(config.read_text().replace("methods.SFT", "methods.DPO"))
    remarks: list[str] = []
    (result,) = measure_samples(read_group(tmp_path / "g"), lambda what: None, remarks)
    assert result.kl is None
    assert remarks[0].startswith("No KL on mini_assistant: There is no reference to compare with")


def test_a_group_without_such_runs_is_left_alone(tmp_path: Path) -> None:
    make_run(tmp_path / "g" / "a", "rows.jsonl")
    remarks: list[str] = []
    assert measure_samples(read_group(tmp_path / "g"), lambda what: None, remarks) == []
    assert remarks == []
