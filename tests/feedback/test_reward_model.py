from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Split
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    LlamaConfig,
    PreTrainedTokenizerFast,
)

from lit_align.errors import UserError
from lit_align.feedback import Answer, RewardModelReward
from lit_align.groups import Message, Text
from lit_align.models import ModelConfig

TEMPLATE = (
    "{% for turn in messages %}<|{{ turn['role'][0] }}|>{{ turn['content'] }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|a|>{% endif %}"
)
SPECIAL = ["<pad>", "<eos>", "<|u|>", "<|a|>", "<|s|>", "<|end|>"]
CHARACTERS = "abcdefghijklmnopqrstuvwxyz .?"


def llama(auto_class: type) -> torch.nn.Module:
    torch.manual_seed(1)
    config = LlamaConfig(
        vocab_size=len(SPECIAL) + len(CHARACTERS),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=64,
        pad_token_id=0,
        bos_token_id=None,
        eos_token_id=1,
    )
    config.num_labels = 1
    model = auto_class.from_config(config)  # type: ignore[attr-defined]
    assert isinstance(model, torch.nn.Module)
    # With the usual tiny initial weights all rewards would be nearly equal.
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return model.eval()


def tokenizer() -> PreTrainedTokenizerFast:
    """Its tokens are characters, and those of the policy's words."""
    words = Tokenizer(WordLevel({token: i for i, token in enumerate([*SPECIAL, *CHARACTERS])}, unk_token="."))
    words.pre_tokenizer = Split("", "isolated")
    fast = PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", eos_token="<eos>")
    fast.add_special_tokens({"additional_special_tokens": SPECIAL[2:]})
    fast.chat_template = TEMPLATE
    return fast


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A reward model with a bias, as the RewardModel method exports it."""
    folder = tmp_path_factory.mktemp("reward_model")
    model = llama(AutoModelForSequenceClassification)
    model.config.reward_bias = 0.75  # type: ignore[union-attr]
    model.save_pretrained(folder)  # type: ignore[operator]
    tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture
def reward(folder: Path) -> RewardModelReward:
    return RewardModelReward(ModelConfig(path=str(folder)), batch_size=2)


def answer(response: str, prompt: Text = "what is it?", finished: bool = True) -> Answer:
    return Answer(prompt, response, prompt_ids=[999], response_ids=[998, 997], finished=finished)


def transformers_score(text: str, folder: Path) -> float:
    """What transformers alone says of a text that is written out with all its special tokens."""
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    ids = tokenizer()(text, return_tensors="pt", add_special_tokens=False).input_ids
    with torch.no_grad():
        return float(model(input_ids=ids).logits) + 0.75


def test_scores_are_those_of_transformers_on_its_own_tokens(reward: RewardModelReward, folder: Path) -> None:
    answers = [answer("a cat."), answer("no", prompt="is it?"), answer("it is a very small dog.")]
    scores = reward(answers)
    expected = [transformers_score(f"{a.prompt}{a.response}<eos>", folder) for a in answers]
    assert scores.total.tolist() == pytest.approx(expected, abs=1e-5)
    assert len({round(value, 2) for value in expected}) == 3
    assert scores.components == {}


def test_chats_go_through_the_reward_models_template(reward: RewardModelReward, folder: Path) -> None:
    prompt = [Message(role="system", content="be kind"), Message(role="user", content="who is it?")]
    expected = transformers_score("<|s|>be kind<|end|><|u|>who is it?<|end|><|a|>a dog.<|end|>", folder)
    assert reward([answer("a dog.", prompt)]).total.item() == pytest.approx(expected, abs=1e-5)


def test_a_response_that_was_cut_has_no_end(reward: RewardModelReward, folder: Path) -> None:
    chat: Text = [Message(role="user", content="who?")]
    scores = reward([answer("a dog", finished=False), answer("a dog", chat, finished=False)])
    expected = [
        transformers_score("what is it?a dog", folder),
        transformers_score("<|u|>who?<|end|><|a|>a dog", folder),
    ]
    assert scores.total.tolist() == pytest.approx(expected, abs=1e-5)


def test_an_empty_response_is_scored_at_its_end(reward: RewardModelReward, folder: Path) -> None:
    scores = reward([answer(""), answer("", finished=False)])
    assert scores.total.tolist() == pytest.approx([transformers_score("what is it?<eos>", folder)] * 2, abs=1e-5)


@pytest.mark.parametrize("batch_size", [1, 3, 100])
def test_batches_change_nothing(batch_size: int, folder: Path, reward: RewardModelReward) -> None:
    answers = [answer("so" * n) for n in (5, 1, 9, 0, 3, 7, 2)]
    other = RewardModelReward(ModelConfig(path=str(folder)), batch_size)
    torch.testing.assert_close(other(answers).total, reward(answers).total, rtol=1e-5, atol=1e-5)


def test_no_answers(reward: RewardModelReward) -> None:
    assert reward([]).total.shape == (0,)


def test_the_model_is_loaded_late_and_frozen(reward: RewardModelReward) -> None:
    assert "model" not in vars(reward)
    reward.to("cpu")
    assert "model" not in vars(reward)
    scores = reward([answer("a")])
    assert not scores.total.requires_grad
    assert not reward.model.training
    assert not any(parameter.requires_grad for parameter in reward.model.parameters())
    assert reward.state_dict() == {}


def test_a_model_loaded_by_validation_serves_training(reward: RewardModelReward) -> None:
    with torch.inference_mode():
        validated = reward([answer("a cat")]).total.tolist()
    scores = reward.score_rollout([answer("a cat")])
    assert scores.total.tolist() == validated
    assert not scores.total.is_inference()


def test_autocast_of_the_trainer_changes_nothing(reward: RewardModelReward) -> None:
    expected = reward([answer("a cat")]).total
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(reward([answer("a cat")]).total, expected, rtol=0, atol=0)


def test_too_long_answers_are_cut_and_it_is_said_once(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    reward = RewardModelReward(ModelConfig(path=str(folder)), max_length=8)
    scores = reward([answer("yes", prompt="abcdefghij"), answer("yes", prompt="abcdefghij")])
    # 4 of the 8 tokens are "yes" and its end.
    assert scores.total.tolist() == pytest.approx([transformers_score("ghijyes<eos>", folder)] * 2, abs=1e-5)
    reward([answer("yes", prompt="abcdefghij")])
    assert [record.message.count("2 prompts cut") for record in caplog.records] == [1]


def test_a_reward_that_is_no_number_names_the_answer(reward: RewardModelReward) -> None:
    with torch.no_grad():
        reward.model.get_input_embeddings().weight[tokenizer().convert_tokens_to_ids("z")] = float("nan")
    with pytest.raises(UserError, match=r"gave nan for the answer 'zoo' to 'what is it\?'"):
        reward([answer("good"), answer("zoo")])


def test_a_folder_without_a_reward_head_is_refused(tmp_path: Path) -> None:
    llama(AutoModelForCausalLM).save_pretrained(tmp_path)  # type: ignore[operator]
    tokenizer().save_pretrained(tmp_path)
    with pytest.raises(UserError, match="LlamaForCausalLM and no reward head"):
        RewardModelReward(ModelConfig(path=str(tmp_path)))([answer("a")])


def test_a_model_without_a_bias_needs_none(folder: Path, tmp_path: Path) -> None:
    llama(AutoModelForSequenceClassification).save_pretrained(tmp_path)  # type: ignore[operator]
    tokenizer().save_pretrained(tmp_path)
    assert "reward_bias" not in json.loads((tmp_path / "config.json").read_text())
    scores = RewardModelReward(ModelConfig(path=str(tmp_path)))([answer("a cat.")])
    assert scores.total.item() == pytest.approx(transformers_score("what is it?a cat.<eos>", folder) - 0.75, abs=1e-5)


def test_a_batch_of_none_is_refused(folder: Path) -> None:
    with pytest.raises(UserError, match="batch_size must be at least 1"):
        RewardModelReward(ModelConfig(path=str(folder)), batch_size=0)
