from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from jsonargparse import ArgumentParser

from lit_align.errors import UserError
from lit_align.feedback import (
    Answer,
    FormatReward,
    FunctionReward,
    LengthReward,
    MissingEOSPenalty,
    RewardSource,
)
from lit_align.groups import Text


def answer(response: str = "yes", prompt: Text = "is it?", finished: bool = True, n_tokens: int = 2) -> Answer:
    """An answer of which only some things matter."""
    return Answer(prompt, response, prompt_ids=[5, 6], response_ids=[7] * n_tokens, finished=finished)


def test_function_gets_prompt_and_response() -> None:
    reward = FunctionReward(lambda prompt, response: len(prompt) - len(response))
    scores = reward([answer("abc", prompt="x"), answer("", prompt="long")])
    assert scores.total.tolist() == [-2.0, 4.0]
    assert scores.total.dtype == torch.float32
    assert scores.components == {}


@pytest.mark.parametrize("container", [list, tuple, np.array, torch.tensor])
def test_batched_function_is_called_once(container: Callable[[list[float]], Any]) -> None:
    calls = []

    def function(prompts: list[str], responses: list[str]) -> Any:
        calls.append((prompts, responses))
        return container([0.5, -1.5])

    scores = FunctionReward(function, batched=True)([answer("a", prompt="p"), answer("b", prompt="q")])
    assert scores.total.tolist() == [0.5, -1.5]
    assert calls == [(["p", "q"], ["a", "b"])]


@pytest.mark.parametrize("batched", [False, True])
def test_no_answers_need_no_function(batched: bool) -> None:
    def refuses(prompt: object, response: object) -> float:
        raise AssertionError("called")

    assert FunctionReward(refuses, batched)([]).total.shape == (0,)


@pytest.mark.parametrize("value", ["good", None, [1.0, 2.0], {}])
def test_function_that_returns_no_number_is_named(value: object) -> None:
    def odd(prompt: object, response: object) -> object:
        return value

    with pytest.raises(UserError, match=r"reward function .*odd"):
        FunctionReward(odd)([answer()])


def test_function_that_returns_nan_is_named() -> None:
    def odd(prompt: object, response: str) -> float:
        return float("nan") if response == "b" else 0.0

    with pytest.raises(UserError, match="odd gave nan for the answer 'b'"):
        FunctionReward(odd)([answer("a"), answer("b")])


def test_batched_function_must_score_every_answer() -> None:
    with pytest.raises(UserError, match=r"shape \(1,\) for 2 answers"):
        FunctionReward(lambda prompts, responses: [0.0], batched=True)([answer(), answer()])


def test_function_and_nested_sources_come_from_yaml(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "users_own.py").write_text("def shout(prompt, response):\n    return response.count('!')\n")
    monkeypatch.syspath_prepend(tmp_path)
    parser = ArgumentParser()
    parser.add_subclass_arguments(RewardSource, "reward")
    config = """
        reward:
          class_path: lit_align.feedback.WeightedSum
          init_args:
            sources:
              shouts: {class_path: lit_align.feedback.FunctionReward, init_args: {function: users_own.shout}}
              ends:
                class_path: lit_align.feedback.Clipped
                init_args: {source: {class_path: lit_align.feedback.MissingEOSPenalty}, low: -0.5}
            weights: {shouts: 2, ends: 1}
    """
    reward = parser.instantiate(parser.parse_string(config)).reward
    scores = reward([answer("oh!!", finished=False), answer("oh")])
    assert scores.total.tolist() == [3.5, 0.0]
    assert "users_own.shout" in parser.dump(parser.parse_string(config))


def test_length_reward_falls_between_start_and_limit() -> None:
    reward = LengthReward(start=4, limit=8)
    answers = [answer(n_tokens=n) for n in (1, 4, 5, 7, 8, 30)]
    assert reward(answers).total.tolist() == [0.0, 0.0, -0.25, -0.75, -1.0, -1.0]
    assert reward([]).total.shape == (0,)


@pytest.mark.parametrize(("start", "limit"), [(-1, 3), (3, 3), (4, 3)])
def test_length_reward_without_a_slope_is_refused(start: int, limit: int) -> None:
    with pytest.raises(UserError, match="smaller than limit"):
        LengthReward(start, limit)


def test_format_reward_wants_the_whole_response() -> None:
    reward = FormatReward(r"<think>.*</think>\s*\d+")
    texts = ["<think>a\nb</think>\n12", "<think></think>7", "so <think>a</think>12", "<think>a</think>12.", ""]
    assert reward([answer(text) for text in texts]).total.tolist() == [1.0, 1.0, 0.0, 0.0, 0.0]
    assert reward([]).total.shape == (0,)


def test_format_reward_refuses_what_is_no_pattern() -> None:
    with pytest.raises(UserError, match=r"'\(' is no regular expression"):
        FormatReward("(")


def test_missing_eos_costs_the_penalty() -> None:
    answers = [answer(finished=True), answer(finished=False)]
    assert MissingEOSPenalty(0.75)(answers).total.tolist() == [0.0, -0.75]
    assert MissingEOSPenalty()([]).total.shape == (0,)


@pytest.mark.parametrize("penalty", [0.0, -1.0, float("nan")])
def test_a_penalty_that_is_none_is_refused(penalty: float) -> None:
    with pytest.raises(UserError, match="more than 0"):
        MissingEOSPenalty(penalty)
