from __future__ import annotations

import json
import os
from types import SimpleNamespace

import pytest
import torch

from callbacks.prompts import PromptSet, over_ranks
from lit_align.data.mini_instruct import PROMPTS
from lit_align.errors import UserError
from lit_align.models import ModelConfig, load_policy, load_tokenizer
from lit_align.rollout import RolloutConfig

SMALL = {"hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2, "num_key_value_heads": 2}


def of_rank(rank: int, world: int) -> SimpleNamespace:
    """As much of a Trainer as sharing out prompts needs."""
    return SimpleNamespace(global_rank=rank, world_size=world)


def test_prompts_are_the_first_different_ones(tmp_path):
    rows = [{"prompt": p, "chosen": "a", "rejected": "b"} for p in ("one", "two", "one", "three", "four")]
    file = tmp_path / "rows.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)))
    assert PromptSet(str(file), 3, 1, RolloutConfig(2), 8).texts == ["one", "two", "three"]
    assert PromptSet(str(file), 9, 1, RolloutConfig(2), 8).texts == ["one", "two", "three", "four"]
    assert PromptSet("mini_instruct", 5, 1, RolloutConfig(2), 8).texts == list(PROMPTS[:5])


def test_every_rank_samples_to_its_own_prompts():
    config = ModelConfig("mini_instruct", init="random", overrides=SMALL)
    model, tokenizer = load_policy(config), load_tokenizer(config)
    prompts = PromptSet("mini_instruct", 5, 3, RolloutConfig(2), 8)
    answers = [prompts.sample(of_rank(rank, 2), model, tokenizer) for rank in range(2)]
    assert [a.prompt for a in answers[0]] == [PROMPTS[i] for i in (0, 2, 4) for _ in range(3)]
    assert [a.prompt for a in answers[1]] == [PROMPTS[i] for i in (1, 3) for _ in range(3)]
    assert PromptSet("mini_instruct", 1, 3, RolloutConfig(2), 8).sample(of_rank(1, 2), model, tokenizer) == []


def gathered_on_a_rank() -> torch.Tensor:
    torch.distributed.init_process_group("gloo")
    rank = int(os.environ["RANK"])
    mine = torch.arange(5.0)[rank::2]
    return over_ranks(torch.stack([mine, 10 * mine], dim=1))


def test_what_ranks_have_comes_together_in_order(on_two_ranks):
    expected = torch.stack([torch.arange(5.0), 10 * torch.arange(5.0)], dim=1)
    assert torch.equal(over_ranks(expected), expected)
    for of_rank_ in on_two_ranks(gathered_on_a_rank):
        assert torch.equal(of_rank_, expected)


@pytest.mark.parametrize("wrong", ["n_prompts", "k", "max_prompt_length"])
def test_numbers_below_one_are_refused(wrong):
    arguments = {"name": "mini_instruct", "n_prompts": 1, "k": 1, "rollout": RolloutConfig(2), "max_prompt_length": 8}
    with pytest.raises(UserError, match=f"{wrong} must be at least 1"):
        PromptSet(**{**arguments, wrong: 0})


def test_no_prompts_is_a_sentence(tmp_path):
    (tmp_path / "empty.jsonl").write_text("")
    with pytest.raises(UserError):
        _ = PromptSet(str(tmp_path / "empty.jsonl"), 1, 1, RolloutConfig(2), 8).texts
