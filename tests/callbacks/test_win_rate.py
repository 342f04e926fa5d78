from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
import torch

from callbacks import WinRate
from callbacks.win_rate import hard
from lit_align.data.mini_instruct import PROMPTS, gold
from lit_align.errors import UserError
from lit_align.feedback import Judge, MiniInstructGold, RewardJudge
from lit_align.models import LoRAConfig, ModelConfig, load_tokenizer
from lit_align.rollout import RolloutConfig


def win_rate(**changed) -> WinRate:
    settings = {
        "prompts": "mini_instruct",
        "judge": RewardJudge(MiniInstructGold()),
        "rollout": RolloutConfig(5),
        "every_n_steps": 100,
        "k": 4,
    }
    return WinRate(**{**settings, **changed})


def test_metrics_by_hand():
    # Two verdicts (ours shown first, ours shown second) and how much longer our answer is.
    table = torch.tensor([[[0.9, 0.7, 2.0], [0.9, 0.1, 0.0]], [[0.2, 0.1, -1.0], [0.9, 0.2, 3.0]]])
    metrics = win_rate()._metrics(table)
    assert metrics["eval/win_rate"] == pytest.approx((1 + 0.5 + 0 + 1) / 4)
    assert metrics["eval/win_rate/ties"] == 0.25
    assert metrics["eval/win_rate/order_agreement"] == 0.5
    assert metrics["eval/win_rate/probability"] == pytest.approx((0.8 + 0.5 + 0.15 + 0.55) / 4)
    assert metrics["eval/win_rate/length_difference"] == 1.0
    assert metrics["eval/win_rate/low"] < metrics["eval/win_rate"] < metrics["eval/win_rate/high"]


def test_what_counts_as_a_win():
    verdicts = torch.tensor([0.0, 0.4999, 0.5, 0.5 + 1e-8, 0.5001, 1.0], dtype=torch.float64)
    assert hard(verdicts).tolist() == [0, 0, 0.5, 0.5, 1, 1]


def test_before_the_first_step_it_is_even_but_not_all_ties(fit_small):
    _, trainer = fit_small("dpo", [win_rate(k=50, seed=3)])
    metrics = trainer.callback_metrics
    assert metrics["eval/win_rate/low"] < 0.5 < metrics["eval/win_rate/high"]
    assert metrics["eval/win_rate/ties"] < 0.5  # the same policy, but not the same draws
    assert metrics["eval/win_rate/order_agreement"] == 1


class Longest(Judge):
    """Prefers the answer with more tokens."""

    def __call__(self, first, second):
        longer = [len(a.response_ids) - len(b.response_ids) for a, b in zip(first, second, strict=True)]
        return torch.tensor(longer).sign().add(1) / 2


def test_against_the_rows_and_against_a_model(fit_small, start):
    rows = win_rate(baseline="rows", judge=Longest(), rollout=RolloutConfig(1))
    model = win_rate(baseline=ModelConfig(str(start)), name="against_itself", every_n_steps=5)
    _, trainer = fit_small("sft", [rows, model])
    metrics = trainer.callback_metrics
    assert metrics["eval/win_rate"] == 0  # ours are one token, and each row has a word and EOS
    assert metrics["eval/win_rate/length_difference"] <= -1
    assert 0 < metrics["eval/against_itself"] < 1


def test_rows_answer_with_the_best_response_of_each_prompt(start, tmp_path):
    rows = [
        {"prompt": PROMPTS[0], "chosen": "cats are lovely", "rejected": "um"},
        {"prompt": PROMPTS[1], "responses": ["um", "thanks", "cats"], "scores": [1, 3, 2]},
        {"prompt": PROMPTS[2], "completion": "um", "label": False},
        {"prompt": PROMPTS[2], "completion": "dogs", "label": True},
        {"prompt": PROMPTS[0], "chosen": "a second time", "rejected": "um"},
    ]
    file = tmp_path / "rows.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)))
    tokenizer = load_tokenizer(ModelConfig(str(start)))
    prompts = win_rate(prompts=str(file), baseline="rows", k=2).prompts
    answers = prompts.row_answers(SimpleNamespace(global_rank=0, world_size=1), tokenizer)
    assert [(a.prompt, a.response) for a in answers[::2]] == [
        (PROMPTS[0], "cats are lovely"), (PROMPTS[1], "thanks"), (PROMPTS[2], "dogs")
    ]  # fmt: skip
    assert answers[0] == answers[1]
    assert answers[0].response_ids[-1] == tokenizer.eos_token_id
    assert gold(answers[0].prompt, tokenizer.decode(answers[0].response_ids, skip_special_tokens=True)) == gold(
        PROMPTS[0], "cats are lovely"
    )


def test_an_adapter_on_the_baseline_is_refused():
    with pytest.raises(UserError, match=r"WinRate\.baseline: .* lora would have no effect"):
        win_rate(baseline=ModelConfig("folder", lora=LoRAConfig()))
