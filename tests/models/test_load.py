"""Models from folders and configurations, back into folders that plain transformers loads, and what is refused on the way."""

from __future__ import annotations

import json

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer, LlamaConfig

from lit_align.data.collate import padded
from lit_align.errors import UserError
from lit_align.feedback import LogProbReward, MiniInstructGold, RewardModelReward
from lit_align.methods import DPO, SFT, RewardModel
from lit_align.methods.rrhf import Candidates
from lit_align.models import (
    LoRAConfig,
    ModelConfig,
    load_policy,
    load_reward_model,
    load_tokenizer,
    response_rewards,
    save_model,
)
from lit_align.rollout import RolloutConfig

RANDOM = ModelConfig("mini_instruct", init="random")
IDS = torch.tensor([[3, 9, 12, 4], [5, 6, 7, 8]])


@pytest.mark.parametrize("method", [SFT, DPO])
def test_an_exported_policy_says_the_same_in_plain_transformers(method, tmp_path):
    module = method(RANDOM)
    module.tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
    module.configure_model()
    module.export(tmp_path / "model")
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "model").eval()
    torch.testing.assert_close(plain(IDS).logits, module.policy.eval()(IDS).logits, atol=1e-5, rtol=0)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "model")
    assert tokenizer.get_vocab() == module.tokenizer.get_vocab()
    assert tokenizer.chat_template == module.tokenizer.chat_template


def test_an_exported_reward_model_says_the_same_in_plain_transformers(tmp_path, random_groups):
    module = RewardModel(RANDOM)
    module.configure_model()
    module.bias.fill_(0.25)
    module.export(tmp_path / "model")
    plain = AutoModelForSequenceClassification.from_pretrained(tmp_path / "model").eval()
    groups = [g._replace(prompt=[3, 4], responses=[[5, 6, 1], [7, 1]]) for g in random_groups([2])]
    batch = padded(groups, pad_id=0)
    scores = plain(**{k: v for k, v in batch.model_inputs.items() if k != "position_ids"}).logits[:, 0]
    torch.testing.assert_close(scores, response_rewards(module.reward_model.eval(), batch), atol=1e-5, rtol=0)
    assert plain.config.reward_bias == 0.25


def test_a_new_reward_head_is_small(tmp_path):
    save_model(load_policy(RANDOM), load_tokenizer(RANDOM), tmp_path / "sft")
    torch.manual_seed(0)
    heads = torch.stack([load_reward_model(ModelConfig(str(tmp_path / "sft"))).score.weight[0] for _ in range(20)])
    assert heads.std().item() == pytest.approx(1 / 65**0.5, rel=0.1)  # 64 wide
    assert heads.mean().item() == pytest.approx(0, abs=0.02)


def test_a_saved_reward_head_is_kept(tmp_path):
    model = load_reward_model(RANDOM)
    save_model(model, load_tokenizer(RANDOM), tmp_path / "reward")
    again = load_reward_model(ModelConfig(str(tmp_path / "reward")))
    assert torch.equal(again.score.weight, model.score.weight)


def test_dropout_is_off_unless_asked_for():
    assert load_policy(RANDOM).config.attention_dropout == 0
    assert load_policy(ModelConfig("mini_instruct", init="random", dropout=0.3)).config.attention_dropout == 0.3


def test_a_save_that_is_cut_short_leaves_the_old_folder(tmp_path, monkeypatch):
    model, tokenizer = load_policy(RANDOM), load_tokenizer(RANDOM)
    save_model(model, tokenizer, tmp_path / "model")
    before = AutoModelForCausalLM.from_pretrained(tmp_path / "model").lm_head.weight.clone()

    def full_disk(*args, **kwargs):
        raise OSError(28, "No space left on device")

    torch.nn.init.zeros_(model.lm_head.weight)
    monkeypatch.setattr(type(tokenizer), "save_pretrained", full_disk)
    with pytest.raises(OSError, match="No space left"):
        save_model(model, tokenizer, tmp_path / "model")
    assert torch.equal(AutoModelForCausalLM.from_pretrained(tmp_path / "model").lm_head.weight, before)


@pytest.mark.parametrize(
    ("config", "sentence"),
    [
        (
            {"path": "no/such/folder/here", "init": "random"},
            r"No model could be loaded: there is no folder 'no/such/folder/here'\.$",
        ),
        (
            {"path": "no/such/run/model", "init": "random"},
            r"there is no folder 'no/such/run/model'\. The run that makes it writes it when it is through\.$",
        ),
        ({"path": "mini_instruct", "init": "random", "overrides": {"num_layers": 3}}, "num_hidden_layers"),
        ({"path": "mini_instruct", "init": "random", "overrides": {"vocab_size": 10}}, "has 22 tokens"),
        ({"path": "mini_instruct", "init": "random", "pad_token": "<none>"}, "pad_token '<none>'"),
        ({"path": "mini_instruct", "init": "random", "chat_template": "none.jinja"}, "none.jinja"),
    ],
)
def test_mistakes_are_sentences(config, sentence):
    with pytest.raises(UserError, match=sentence):
        load_policy(ModelConfig(**config))


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"lora": LoRAConfig()}, "so lora would have no effect. Leave it out."),
        ({"activation_checkpointing": True}, "so activation_checkpointing would have no effect. Leave it out."),
        (
            {"dropout": 0.1, "activation_checkpointing": True},
            "so activation_checkpointing and dropout would .* Leave them out.",
        ),
    ],
)
def test_settings_of_training_are_refused_where_nothing_is_trained(settings, sentence):
    config = ModelConfig("folder", **settings)
    owners = [
        lambda: config.refuse_training("a judge"),
        lambda: LogProbReward(config),
        lambda: Candidates(MiniInstructGold(), RolloutConfig(5), samplers=[config]),
    ]
    owners += [] if config.lora else [lambda: RewardModelReward(config)]
    for owner in owners:
        with pytest.raises(UserError, match=sentence):
            owner()
    ModelConfig("folder").refuse_training("a judge")


def test_weights_are_wanted_where_there_are_none():
    with pytest.raises(UserError, match="init: random"):
        ModelConfig("mini_instruct")


def test_pickled_weights_are_refused(tmp_path):
    load_tokenizer(RANDOM).save_pretrained(tmp_path)
    model = load_policy(RANDOM)
    model.config.save_pretrained(tmp_path)
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(UserError, match="No model could be loaded"):
        load_policy(ModelConfig(str(tmp_path)))


def test_a_reward_model_needs_its_own_padding(tmp_path):
    tokenizer = load_tokenizer(RANDOM)
    tokenizer.pad_token = tokenizer.eos_token
    tokenizer.save_pretrained(tmp_path)
    LlamaConfig(**json.loads(load_policy(RANDOM).config.to_json_string())).save_pretrained(tmp_path)
    with pytest.raises(UserError, match="pads with its EOS token"):
        load_reward_model(ModelConfig(str(tmp_path), init="random"))
