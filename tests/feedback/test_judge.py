"""The judge that a reward makes, and sampling answers to judge."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch

from lit_align.errors import UserError
from lit_align.feedback import Answer, RewardJudge, RewardSource, Scores, sample_answers
from lit_align.models import ModelConfig, load_policy, load_tokenizer
from lit_align.rollout import RolloutConfig


class NumberOfTokens(RewardSource):
    def __call__(self, answers: Sequence[Answer]) -> Scores:
        return Scores(torch.tensor([float(len(answer.response_ids)) for answer in answers]), {})


def answers(*lengths: int) -> list[Answer]:
    return [Answer("p", "word " * n, [1], list(range(n)), finished=True) for n in lengths]


def test_a_reward_judges_by_the_sigmoid_of_the_difference() -> None:
    judge = RewardJudge(NumberOfTokens(), scale=0.5)
    verdict = judge(answers(4, 2, 3), answers(2, 4, 3))
    # sigmoid(0.5 * 2) and its complement, and a tie
    torch.testing.assert_close(verdict, torch.tensor([0.7310586, 0.2689414, 0.5]), atol=1e-6, rtol=0)


def test_it_has_no_order() -> None:
    first, second = answers(1, 5), answers(2, 3)
    judge = RewardJudge(NumberOfTokens())
    both = judge.by_order(first, second)
    assert both.shape == (2, 2)
    assert torch.equal(both[:, 0], both[:, 1])
    torch.testing.assert_close(judge(first, second) + judge(second, first), torch.ones(2))


def test_no_answers_no_verdicts() -> None:
    assert RewardJudge(NumberOfTokens())([], []).shape == (0,)


@pytest.mark.parametrize("scale", [0.0, -1.0, float("nan")])
def test_a_scale_that_turns_the_verdict_is_refused(scale: float) -> None:
    with pytest.raises(UserError, match="above 0"):
        RewardJudge(NumberOfTokens(), scale)


@pytest.fixture(scope="module")
def model_and_tokenizer() -> tuple[Any, Any]:
    config = ModelConfig(path="mini_instruct", init="random")
    return load_policy(config), load_tokenizer(config)


def sampled(model: Any, tokenizer: Any, prompts: Sequence[str], k: int, **config: Any) -> list[Answer]:
    torch.manual_seed(0)
    return sample_answers(model, tokenizer, prompts, k, RolloutConfig(max_new_tokens=3, **config))


def test_answers_come_k_to_a_prompt_in_order(model_and_tokenizer: tuple[Any, Any]) -> None:
    model, tokenizer = model_and_tokenizer
    model.train()
    given = sampled(model, tokenizer, ["tell me about cats", "tell me about fish please"], 3)
    assert [answer.prompt for answer in given] == ["tell me about cats"] * 3 + ["tell me about fish please"] * 3
    assert list(given[0].prompt_ids) == tokenizer("tell me about cats")["input_ids"][: len(given[0].prompt_ids)]
    for answer in given:
        assert 1 <= len(answer.response_ids) <= 3
        assert answer.finished == (answer.response_ids[-1] == tokenizer.eos_token_id)
        assert answer.response == tokenizer.decode(answer.response_ids, skip_special_tokens=True)
    assert model.training


def test_an_empty_prompt_is_named(model_and_tokenizer: tuple[Any, Any]) -> None:
    model, tokenizer = model_and_tokenizer
    if tokenizer("")["input_ids"]:
        pytest.skip("this tokenizer begins every text with a token")
    with pytest.raises(UserError, match="prompt 2"):
        sampled(model, tokenizer, ["tell me about cats", ""], 1)
