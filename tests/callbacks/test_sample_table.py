from __future__ import annotations

import csv
import json
from types import SimpleNamespace

import pytest
import torch

from callbacks import SampleTable
from callbacks.sample_table import as_text, in_order
from lit_align.data.mini_instruct import PROMPTS, gold
from lit_align.feedback import MiniInstructGold
from lit_align.models import ModelConfig, load_policy
from lit_align.rollout import RolloutConfig
from lit_align.runtime import log_samples
from lit_align.runtime.loggers import RunCSVLogger


def table(**changed) -> SampleTable:
    settings = {"prompts": "mini_instruct", "rollout": RolloutConfig(3), "every_n_steps": 2, "n_prompts": 3, "k": 2}
    return SampleTable(**{**settings, **changed})


def test_responses_stand_side_by_side_with_scores(fit_small, start, tmp_path):
    _, trainer = fit_small("dpo", [table(reward=MiniInstructGold())], logger=RunCSVLogger(tmp_path))
    rows = [json.loads(line) for line in (tmp_path / "samples.jsonl").read_text().splitlines()]
    assert [(row["step"], row["prompt"]) for row in rows] == [
        (s, p) for s in (0, 2, 4) for p in PROMPTS[:3] for _ in "12"
    ]
    assert list(rows[0]) == [
        "step", "source", "prompt", "response", "score", "reference", "reference_score", "kl", "finished",
    ]  # fmt: skip
    assert {row["source"] for row in rows} == {"samples"}
    for row in rows:
        assert row["score"] == pytest.approx(gold(row["prompt"], row["response"]), abs=1e-6)
        assert row["reference_score"] == pytest.approx(gold(row["prompt"], row["reference"]), abs=1e-6)
    # Before the first step the models are one, and so is what they say.
    assert all(row["response"] == row["reference"] and row["kl"] == 0 for row in rows[:6])
    assert any(row["kl"] != 0 for row in rows[6:])
    with (tmp_path / "eval" / "samples.csv").open(newline="") as lines:
        of_csv = list(csv.DictReader(lines))
    assert [(row["response"], row["reference"]) for row in of_csv] == [(r["response"], r["reference"]) for r in rows]
    assert float(of_csv[-1]["kl"]) == rows[-1]["kl"]
    assert not any(name.startswith("eval/samples") for name in trainer.callback_metrics)


def test_kl_is_the_log_ratio_of_the_whole_response(fit_small, start, tmp_path):
    module, _ = fit_small("dpo", [table(every_n_steps=5, at_start=False)], logger=RunCSVLogger(tmp_path))
    reference = load_policy(ModelConfig(str(start))).eval()
    tokenizer = module.tokenizer
    for line in (tmp_path / "samples.jsonl").read_text().splitlines():
        row = json.loads(line)
        prompt = tokenizer(row["prompt"]).input_ids
        ids = (
            tokenizer(row["response"], add_special_tokens=False).input_ids + [tokenizer.eos_token_id] * row["finished"]
        )
        if len(ids) < 3 and not row["finished"]:
            continue  # special tokens were drawn, which the text does not show
        with torch.no_grad():
            every = [
                m(torch.tensor([prompt + ids])).logits.log_softmax(-1)[0] for m in (module.policy.eval(), reference)
            ]
        at = torch.arange(len(prompt) - 1, len(prompt) + len(ids) - 1)
        ours, theirs = (logps[at, torch.tensor(ids)].sum() for logps in every)
        assert row["kl"] == pytest.approx(float(ours - theirs), abs=1e-4)


def test_without_a_reward_there_are_no_scores_and_methods_keep_their_own_samples(fit_small, tmp_path):
    fit_small("ppo", [table(every_n_steps=4, n_prompts=1, k=1)], logger=RunCSVLogger(tmp_path))
    rows = [json.loads(line) for line in (tmp_path / "samples.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if row.get("source") == "samples"] == [0, 4, 8, 12, 16, 20]
    assert not any("score" in row or "reference_score" in row for row in rows if "source" in row)
    assert [row["step"] for row in rows if "source" not in row] == [0] * 8


def test_rows_of_ranks_interleave():
    rows = [[{"p": 0}, {"p": 0}, {"p": 2}, {"p": 2}], [{"p": 1}, {"p": 1}]]
    assert [row["p"] for row in in_order(rows, k=2)] == [0, 0, 1, 1, 2, 2]
    assert [row["p"] for row in in_order([[{"p": 0}], []], k=1)] == [0]


def test_a_chat_fits_a_cell():
    assert as_text([{"role": "user", "content": "Why?"}, {"role": "assistant", "content": "So."}]) == (
        "user: Why?\nassistant: So."
    )
    assert as_text("Why?") == "Why?"


def test_a_line_separator_in_a_response_is_no_end_of_a_row(tmp_path):
    trainer = SimpleNamespace(
        is_global_zero=True, loggers=[None], logger=None, default_root_dir=tmp_path, global_step=3
    )
    log_samples(trainer, [{"prompt": "a", "response": "one\u2028two"}], source="samples")
    log_samples(trainer, [{"prompt": "a", "response": "of the method"}])
    rows = [json.loads(line) for line in (tmp_path / "samples.jsonl").read_text(encoding="utf-8").strip().split("\n")]
    assert [row["response"] for row in rows] == ["one\u2028two", "of the method"]
