"""Low-rank adapters: what is trained, saved and exported, and that the rest of the model stays what it is."""

from __future__ import annotations

import copy

import pytest
import torch
from peft import PeftModel
from torch import nn
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, LlamaConfig

from lit_align.data import padded
from lit_align.errors import UserError
from lit_align.models import (
    LoRAConfig,
    ModelConfig,
    MovingReference,
    frozen_copy,
    load_policy,
    load_reward_model,
    load_tokenizer,
    moving_copy,
    response_logps,
    response_rewards,
    save_model,
)
from lit_align.models.adapters import merged_state, with_lora, without_adapter

EMBEDDED = ModelConfig("mini_instruct", init="random")


def trained(model: nn.Module) -> nn.Module:
    """An adapter as training leaves it: a new one adds nothing."""
    torch.manual_seed(5)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data += 0.1 * torch.randn_like(parameter)
    return model


@torch.no_grad()
def logits(model: nn.Module) -> torch.Tensor:
    return model.eval()(input_ids=torch.tensor([[3, 5, 7, 2, 9]])).logits


def test_a_new_adapter_changes_nothing_and_is_all_that_is_trained(architecture) -> None:
    plain = AutoModelForCausalLM.from_config(architecture)
    before = logits(plain)
    adapted = with_lora(plain, LoRAConfig(rank=3))
    assert torch.equal(logits(adapted), before)
    names = [name for name, parameter in adapted.named_parameters() if parameter.requires_grad]
    assert names
    assert all(".lora_A.default.weight" in name or ".lora_B.default.weight" in name for name in names)
    linear = {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj", "c_attn", "c_proj", "c_fc"}
    adapted_layers = {name.split(".lora_")[0].split(".")[-1] for name in names}
    assert adapted_layers == linear & {name.split(".")[-1] for name, _ in adapted.named_modules()}


def test_the_reference_is_the_same_weights_without_the_adapter(architecture) -> None:
    adapted = trained(with_lora(AutoModelForCausalLM.from_config(architecture), LoRAConfig(rank=3)))
    reference = frozen_copy(adapted)
    tensors = {parameter.data_ptr() for parameter in adapted.parameters()}
    assert {parameter.data_ptr() for parameter in reference.parameters()} <= tensors
    assert not any(parameter.requires_grad for parameter in reference.parameters())
    assert not reference.training
    with adapted.disable_adapter():
        expected = logits(adapted)
    assert torch.equal(logits(reference), expected)
    assert float((logits(adapted) - expected).abs().max()) > 1e-3


def test_another_adapter_is_on_the_same_weights_and_follows(architecture) -> None:
    adapted = trained(with_lora(AutoModelForCausalLM.from_config(architecture), LoRAConfig(rank=3)))
    kept, other = copy.deepcopy(adapted), moving_copy(adapted)
    own = [name for name, parameter in adapted.named_parameters() if parameter.requires_grad]
    of_adapted = {name: parameter.data_ptr() for name, parameter in adapted.named_parameters()}
    assert own == [name for name, p in other.named_parameters() if p.data_ptr() != of_adapted[name]]
    assert not any(parameter.requires_grad for parameter in other.parameters())
    trained(adapted)
    assert torch.equal(logits(other), logits(kept))
    assert not torch.equal(logits(other), logits(adapted))
    MovingReference(every=1).move(other, adapted)
    assert torch.equal(logits(other), logits(adapted))
    saved = nn.ModuleDict({"policy": adapted, "previous": other}).state_dict()
    names = {f"{part}.{name}" for part in ("policy", "previous") for name in [*own, "base_fingerprint"]}
    assert saved.keys() == names


def test_log_probabilities_go_through_the_adapter(architecture, random_groups) -> None:
    adapted = trained(with_lora(AutoModelForCausalLM.from_config(architecture), LoRAConfig(rank=3))).eval()
    batch = padded(random_groups([2, 3]), pad_id=0)
    expected = adapted(**batch.model_inputs).logits.log_softmax(-1).flatten(0, 1)[batch.predict_index]
    expected = expected.gather(-1, batch.targets[:, None]).squeeze(-1)
    torch.testing.assert_close(response_logps(adapted, batch), expected, atol=1e-5, rtol=1e-5)
    response_logps(adapted, batch).sum().backward()
    assert all((p.grad is not None) == p.requires_grad for p in adapted.parameters())


def test_a_module_saves_what_is_trained_and_takes_it_back() -> None:
    torch.manual_seed(0)
    config = ModelConfig("mini_instruct", init="random", lora=LoRAConfig(rank=2, target_modules=["q_proj", "v_proj"]))
    first = nn.ModuleDict({"policy": load_policy(config), "other": nn.Linear(2, 2)})
    base = copy.deepcopy(without_adapter(first["policy"]).state_dict())
    trained(first["policy"])
    state = first.state_dict()
    of_policy = {key for key in state if key.startswith("policy.")}
    assert len(of_policy) == 2 * 2 * 2 + 1
    assert sum(state[key].numel() for key in of_policy) < 1200
    assert {"other.weight", "other.bias"} < state.keys()

    torch.manual_seed(0)
    second = nn.ModuleDict({"policy": load_policy(config), "other": nn.Linear(2, 2)})
    second.load_state_dict(state)
    assert torch.equal(logits(second["policy"]), logits(first["policy"]))
    assert all(
        torch.equal(base[name], tensor) for name, tensor in without_adapter(second["policy"]).state_dict().items()
    )
    with pytest.raises(RuntimeError, match=r"Missing key.*lora_B"):
        second.load_state_dict({key: value for key, value in state.items() if "0.self_attn.q_proj.lora_B" not in key})


def test_an_adapter_to_other_weights_is_refused() -> None:
    config = ModelConfig("mini_instruct", init="random", lora=LoRAConfig())
    torch.manual_seed(0)
    first = nn.ModuleDict({"policy": load_policy(config)})
    other = nn.ModuleDict({"policy": load_policy(config)})
    with pytest.raises(UserError, match="an adapter to other weights"):
        other.load_state_dict(first.state_dict())


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # peft 0.21 (2026-11)
def test_an_exported_policy_loads_as_a_plain_model(tmp_path) -> None:
    adapted = trained(load_policy(ModelConfig("mini_instruct", init="random", lora=LoRAConfig(rank=4, alpha=8))))
    before = copy.deepcopy(adapted.state_dict())
    expected = logits(adapted)
    plain = copy.deepcopy(without_adapter(adapted))
    save_model(adapted, load_tokenizer(EMBEDDED), tmp_path / "model")
    assert all(torch.equal(before[name], value) for name, value in adapted.state_dict().items())

    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    torch.testing.assert_close(logits(merged), expected, atol=1e-5, rtol=1e-5)
    apart = PeftModel.from_pretrained(plain, tmp_path / "model" / "adapter")
    torch.testing.assert_close(logits(apart), expected, atol=1e-6, rtol=1e-6)


def test_merging_is_what_peft_does(architecture) -> None:
    adapted = trained(with_lora(AutoModelForCausalLM.from_config(architecture), LoRAConfig(rank=3, alpha=5)))
    state = merged_state(adapted, adapted.state_dict())
    expected = adapted.merge_and_unload().state_dict()
    assert state.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(state[name], value, atol=1e-6, rtol=1e-6)


def test_a_reward_head_is_trained_in_full(tmp_path, random_groups) -> None:
    config = ModelConfig("mini_instruct", init="random", lora=LoRAConfig(rank=2))
    model = trained(load_reward_model(config)).eval()
    names = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert [name for name in names if "lora_" not in name] == ["base_model.model.score.modules_to_save.default.weight"]
    batch = padded(random_groups([2, 3], longest=5), pad_id=0)
    batch.model_inputs["input_ids"] %= 15
    rewards = response_rewards(model, batch)

    torch.manual_seed(8)
    fresh = nn.ModuleDict({"reward_model": load_reward_model(config)})
    # The same trunk under another new head, as a run that goes on has it.
    frozen = without_adapter(model).base_model.state_dict()
    without_adapter(fresh["reward_model"]).base_model.load_state_dict(frozen)
    fresh["reward_model"].base_fingerprint = model.base_fingerprint
    fresh.load_state_dict(nn.ModuleDict({"reward_model": model}).state_dict())
    torch.testing.assert_close(response_rewards(fresh["reward_model"].eval(), batch), rewards)

    save_model(model, load_tokenizer(EMBEDDED), tmp_path / "model")
    exported = AutoModelForSequenceClassification.from_pretrained(tmp_path / "model")
    torch.testing.assert_close(response_rewards(exported.eval(), batch), rewards, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("target", ["embed_tokens", "lm_head"])
def test_layers_that_take_no_adapter_are_refused(target) -> None:
    config = LlamaConfig(
        vocab_size=20, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2
    )
    with pytest.raises(UserError, match=f"{target} of LlamaForCausalLM is no linear layer below the head"):
        with_lora(AutoModelForCausalLM.from_config(config), LoRAConfig(target_modules=["q_proj", target]))


def test_layers_that_are_not_there_are_refused() -> None:
    with pytest.raises(UserError, match=r"lora\.target_modules: .*q_prj"):
        load_policy(ModelConfig("mini_instruct", init="random", lora=LoRAConfig(target_modules=["q_prj"])))


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"rank": 0}, "rank"), ({"alpha": 0}, "alpha"), ({"dropout": 1.0}, "dropout"), ({"target_modules": []}, "empty")],
)
def test_settings_that_cannot_be_are_refused(settings, message) -> None:
    with pytest.raises(UserError, match=message):
        LoRAConfig(**settings)
