from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor

from lit_align.errors import UserError
from lit_align.feedback import Answer, ImplicitReward, LogProbReward, RewardJudge, implicit
from lit_align.groups import Message, Text
from lit_align.models import LoRAConfig, ModelConfig

TokenLogps = Callable[[str, str, str], list[float]]
CHAT: Text = [Message(role="user", content="who?")]


def answer(response: str, prompt: Text = "what is it?", finished: bool = True) -> Answer:
    return Answer(prompt, response, prompt_ids=[999], response_ids=[998, 997], finished=finished)


@pytest.fixture
def configs(language_models: Path) -> dict[str, ModelConfig]:
    return {name: ModelConfig(str(language_models / name)) for name in ("chat", "plain", "other")}


ANSWERS = [answer("a cat."), answer("it is a very small dog.", CHAT), answer("no", finished=False), answer("")]
WRITTEN_OUT = [
    ("what is it?", "a cat.<eos>"),
    ("<|u|>who?<|end|><|a|>", "it is a very small dog.<|end|>"),
    ("what is it?", "no"),
    ("what is it?", "<eos>"),
]


@pytest.mark.parametrize("normalise", [True, False])
def test_the_log_probability_is_that_of_transformers(
    normalise: bool, configs: dict[str, ModelConfig], token_logps_of: TokenLogps
) -> None:
    scores = LogProbReward(configs["chat"], normalise, batch_size=3)(ANSWERS)
    per_token = [token_logps_of("chat", *text) for text in WRITTEN_OUT]
    expected = [sum(logps) / (len(logps) if normalise else 1) for logps in per_token]
    assert scores.total.tolist() == pytest.approx(expected, abs=1e-4)
    assert scores.components == {}


def test_the_implicit_reward_sums_over_the_response(
    configs: dict[str, ModelConfig], token_logps_of: TokenLogps
) -> None:
    scores = ImplicitReward(configs["chat"], configs["other"], beta=0.5, batch_size=3)(ANSWERS)
    policy, reference = ([sum(token_logps_of(name, *text)) for text in WRITTEN_OUT] for name in ("chat", "other"))
    assert scores.total.tolist() == pytest.approx(
        [0.5 * (ours - theirs) for ours, theirs in zip(policy, reference, strict=True)], abs=1e-4
    )
    assert scores.components["policy"].tolist() == pytest.approx(policy, abs=1e-4)
    assert scores.components["reference"].tolist() == pytest.approx(reference, abs=1e-4)


def test_without_a_reference_it_is_the_log_probability(configs: dict[str, ModelConfig]) -> None:
    scores = ImplicitReward(configs["chat"], None, beta=0.5)(ANSWERS)
    plain = LogProbReward(configs["chat"], normalise=False)(ANSWERS)
    torch.testing.assert_close(scores.total, 0.5 * plain.total)
    assert list(scores.components) == ["policy"]


def test_a_policy_that_is_its_reference_has_no_opinion(configs: dict[str, ModelConfig]) -> None:
    assert ImplicitReward(configs["chat"], configs["chat"])(ANSWERS).total.tolist() == [0, 0, 0, 0]


def test_spas_judgement(configs: dict[str, ModelConfig], monkeypatch: pytest.MonkeyPatch) -> None:
    # A worked example: log-probabilities (-10, -8) of the policy and (-12, -9) of the SFT model, beta 0.1.
    sums = {configs["chat"].path: [-10.0, -8.0], configs["other"].path: [-12.0, -9.0]}

    def log_probs(self: implicit.LogProbReader, answers: Sequence[Answer], normalise: bool = False) -> Tensor:
        assert not normalise
        return torch.tensor(sums[self.name])

    monkeypatch.setattr(implicit.LogProbReader, "log_probs", log_probs)
    reward = ImplicitReward(configs["chat"], configs["other"], beta=0.1)
    pair = [answer("longer"), answer("likely")]
    torch.testing.assert_close(reward(pair).total, torch.tensor([0.2, 0.1]), atol=1e-6, rtol=0)
    verdict = RewardJudge(reward)(pair[:1], pair[1:])
    torch.testing.assert_close(verdict, torch.tensor([0.524979]), atol=1e-6, rtol=0)


@pytest.mark.parametrize("batch_size", [1, 3, 100])
def test_batches_change_nothing(batch_size: int, configs: dict[str, ModelConfig]) -> None:
    answers = [answer("so" * n) for n in (5, 1, 9, 0, 3, 7, 2)]
    expected = LogProbReward(configs["chat"], batch_size=2)(answers).total
    given = LogProbReward(configs["chat"], batch_size=batch_size)(answers).total
    torch.testing.assert_close(given, expected, rtol=1e-5, atol=1e-5)


def test_models_are_loaded_late_and_frozen(configs: dict[str, ModelConfig]) -> None:
    reward = ImplicitReward(configs["chat"], configs["other"])
    reward.to("cpu")
    frozen = [reader.frozen for reader in reward._readers.values()]
    assert not any("model" in vars(one) for one in frozen)
    with torch.inference_mode():
        validated = reward(ANSWERS).total.tolist()
    scores = reward.score_rollout(ANSWERS)
    assert scores.total.tolist() == validated
    assert not scores.total.requires_grad
    assert not scores.total.is_inference()
    for one in frozen:
        assert not one.model.training
        assert not any(parameter.requires_grad for parameter in one.model.parameters())
    assert reward.state_dict() == {}


def test_autocast_of_the_trainer_changes_nothing(configs: dict[str, ModelConfig]) -> None:
    reward = LogProbReward(configs["chat"])
    expected = reward(ANSWERS).total
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(reward(ANSWERS).total, expected, rtol=0, atol=0)


def test_no_answers(configs: dict[str, ModelConfig]) -> None:
    scores = ImplicitReward(configs["chat"], configs["other"])([])
    assert scores.total.shape == scores.components["policy"].shape == (0,)


def test_what_is_refused(configs: dict[str, ModelConfig]) -> None:
    with pytest.raises(UserError, match="beta must be above 0"):
        ImplicitReward(configs["chat"], None, beta=0.0)
    with pytest.raises(UserError, match="batch_size must be at least 1"):
        LogProbReward(configs["chat"], batch_size=0)
    with pytest.raises(UserError, match="ImplicitReward: nothing is trained here"):
        ImplicitReward(configs["chat"], ModelConfig("folder", lora=LoRAConfig()))
    with pytest.raises(UserError, match="has no chat template"):
        LogProbReward(configs["plain"])([answer("a", CHAT)])
