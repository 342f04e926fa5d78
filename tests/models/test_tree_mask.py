"""Trees in a row against every response alone: values, gradients, windows; and the models that are refused."""

from __future__ import annotations

import gc
import weakref

import pytest
import torch
from torch.nn.attention.flex_attention import create_mask, flex_attention
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    BloomConfig,
    Gemma2Config,
    GPTNeoConfig,
    LlamaConfig,
    MambaConfig,
    MistralConfig,
    MptConfig,
    Qwen2Config,
    RwkvConfig,
)
from transformers.integrations import flex_attention as integration

from lit_align.data.collate import padded
from lit_align.data.shared_layout import shared
from lit_align.errors import UserError
from lit_align.groups import TokenGroup, preferred_pairs, sum_by_response
from lit_align.models import response_logps, response_rewards, tree_mask
from lit_align.models.tree_attention import IN_PIECES

SIZES = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 40}
WINDOW = {"sliding_window": 4, "num_key_value_heads": 2, "pad_token_id": 0}
CPU = torch.device("cpu")


def build(config, implementation="sdpa", kind=AutoModelForCausalLM):
    torch.manual_seed(0)
    return kind.from_config(config, attn_implementation=implementation).eval()  # without dropout


def values_and_gradients(model, batch, values_of, loss_of):
    model.zero_grad()
    values = values_of(model, batch)
    loss_of(values, batch).backward()
    return values.detach(), [torch.zeros_like(p) if p.grad is None else p.grad.clone() for p in model.parameters()]


def assert_layouts_agree(model, groups, values_of, loss_of):
    expected, gradients = values_and_gradients(model, padded(groups, pad_id=0), values_of, loss_of)
    for tokens_per_row in (1, 40, 1000):
        batch = shared(groups, pad_id=0, tokens_per_row=tokens_per_row)
        actual, shared_gradients = values_and_gradients(model, batch, values_of, loss_of)
        torch.testing.assert_close(actual, expected, atol=1e-5, rtol=0)
        for a, b in zip(shared_gradients, gradients, strict=True):
            torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)


def pair_loss(values, batch):
    chosen, rejected = preferred_pairs(batch.scores, batch.group_index)
    return -torch.nn.functional.logsigmoid(values[chosen] - values[rejected]).mean()


def logp_loss(values, batch):
    return pair_loss(sum_by_response(values, batch.response_index, batch.n_responses), batch)


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_logps_and_gradients_agree_with_padded(architecture, implementation, random_groups):
    model = build(architecture, implementation)
    assert_layouts_agree(model, random_groups([2, 1, 5, 3, 2, 4], seed=3), response_logps, logp_loss)


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_rewards_and_gradients_agree_with_padded(architecture, implementation, random_groups):
    architecture.num_labels = 1
    model = build(architecture, implementation, AutoModelForSequenceClassification)
    assert_layouts_agree(model, random_groups([2, 1, 5, 3, 2, 4], seed=4), response_rewards, pair_loss)


@pytest.mark.parametrize(
    ("config", "implementation"),
    [
        (MistralConfig(**SIZES, **WINDOW), "sdpa"),
        (Qwen2Config(**SIZES, **WINDOW, use_sliding_window=True, max_window_layers=1), "sdpa"),
        (Qwen2Config(**SIZES, **WINDOW, use_sliding_window=True, max_window_layers=0), "sdpa"),
        (Gemma2Config(**SIZES, **WINDOW, head_dim=8), "eager"),
    ],
    ids=["mistral", "qwen2_both", "qwen2_all", "gemma2"],
)
def test_windows_are_cut_by_position(config, implementation, random_groups):
    model = build(config, implementation)
    groups = random_groups([3, 2, 4], longest=9)
    assert_layouts_agree(model, groups, response_logps, logp_loss)
    expected = response_logps(model, padded(groups, pad_id=0))
    model.config.sliding_window = 100
    assert (response_logps(model, shared(groups, pad_id=0)) - expected).abs().max() > 1e-4


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        (BloomConfig(hidden_size=32, n_layer=2, n_head=4, vocab_size=40), "fails with ValueError"),
        (MptConfig(d_model=32, n_layers=2, n_heads=4, vocab_size=40), "changes its hidden states"),
        (RwkvConfig(hidden_size=32, num_hidden_layers=2, vocab_size=40), "changes its hidden states"),
        (MambaConfig(hidden_size=32, num_hidden_layers=2, vocab_size=40), "layers of the kind linear_attention"),
        (
            GPTNeoConfig(hidden_size=32, num_layers=2, num_heads=4, vocab_size=40, attention_types=[[["local"], 2]]),
            "limited by window_size",
        ),
    ],
    ids=["bloom", "mpt", "rwkv", "mamba", "gpt_neo"],
)
def test_models_that_cannot_are_refused(config, reason, random_groups):
    model = build(config, "eager")
    with pytest.raises(UserError, match=reason) as caught:
        response_logps(model, shared(random_groups([2, 2]), pad_id=0))
    assert str(caught.value).endswith("Set data.layout: padded.")


def test_kernels_without_masks_are_refused(random_groups):
    model = build(LlamaConfig(**SIZES))
    model.config._attn_implementation = "flash_attention_2"
    with pytest.raises(UserError, match="flash_attention_2 takes no mask of its own"):
        response_logps(model, shared(random_groups([2]), pad_id=0))


def test_a_model_that_ignores_the_mask_is_refused(monkeypatch, random_groups):
    model = build(LlamaConfig(**SIZES))
    trunk = type(model.base_model)
    forward = trunk.forward
    monkeypatch.setattr(
        trunk, "forward", lambda self, attention_mask=None, trees=None, **inputs: forward(self, **inputs)
    )
    with pytest.raises(UserError, match="ignores a mask of its own"):
        response_logps(model, shared(random_groups([2]), pad_id=0))


def test_a_model_that_ignores_windows_is_refused(random_groups):
    config = LlamaConfig(**SIZES)
    config.sliding_window = 4096
    with pytest.raises(UserError, match="changes its hidden states"):
        response_logps(build(config), shared(random_groups([2]), pad_id=0))


def test_the_measurement_leaves_no_trace():
    model = build(MistralConfig(**SIZES, **WINDOW, attention_dropout=0.1)).base_model.train()
    model.layers[0].eval()
    modes = [module.training for module in model.modules()]
    state = torch.get_rng_state()
    tree_mask.check_trees(model, CPU)
    assert [module.training for module in model.modules()] == modes
    assert model.config.sliding_window == 4
    assert torch.equal(torch.get_rng_state(), state)
    assert all(parameter.grad is None for parameter in model.parameters())


def test_it_is_made_once_for_each_model_and_implementation(monkeypatch):
    measured = []
    measure = tree_mask._measure

    def counted(trunk, device):
        measured.append(trunk.config._attn_implementation)
        return measure(trunk, device)

    monkeypatch.setattr(tree_mask, "_measure", counted)
    model = build(LlamaConfig(**SIZES)).base_model
    for _ in range(3):
        tree_mask.check_trees(model, CPU)
    model.set_attn_implementation("eager")
    tree_mask.check_trees(model, CPU)
    assert measured == [IN_PIECES, "eager"]
    alive = weakref.ref(model)
    del model
    gc.collect()
    assert alive() is None


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_bf16(architecture, implementation, random_groups):
    groups = random_groups([3, 2, 4])
    model = build(architecture, implementation)
    expected = response_logps(model, padded(groups, pad_id=0))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = response_logps(model, shared(groups, pad_id=0))
    true = response_logps(build(architecture, implementation).bfloat16(), shared(groups, pad_id=0))
    torch.testing.assert_close(mixed, expected, atol=0.02, rtol=0)
    torch.testing.assert_close(true, expected, atol=0.02, rtol=0)


def test_bf16_behind_float32_outputs_is_measured_as_bf16():
    """As FSDP's mixed precision has it, whose outputs may be cast."""
    model = build(LlamaConfig(**{**SIZES, "num_hidden_layers": 12})).bfloat16().base_model
    model.norm.register_forward_hook(lambda module, inputs, output: output.float())
    off, tolerance = tree_mask._measure(model, CPU)
    assert 1e-3 < off < tolerance
    tree_mask.check_trees(model, CPU)


def test_flex_attention_has_the_same_mask_in_blocks(random_groups):
    model = build(MistralConfig(**SIZES, **WINDOW)).base_model
    inputs = shared(random_groups([2, 3, 1]), pad_id=0, tokens_per_row=40).model_inputs
    trees = (inputs["visible_until"], inputs["position_ids"])
    rows, width = inputs["input_ids"].shape
    for window in (4, None):
        model.config.sliding_window = window
        model.set_attn_implementation("sdpa")
        expected = tree_mask._attention_mask(model, *trees)
        model.set_attn_implementation("flex_attention")
        blocks = tree_mask._attention_mask(model, *trees)
        actual = create_mask(blocks.mask_mod, rows, 1, width, width, device="cpu")
        assert torch.equal(actual, expected)


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
def test_flex_attention_computes_the_same(random_groups, monkeypatch):
    """Without compiling it, and forward, which is what it does on a CPU."""
    model = build(LlamaConfig(**SIZES, num_key_value_heads=2))
    groups = random_groups([2, 1, 3])
    expected = response_logps(model, padded(groups, pad_id=0))
    model.set_attn_implementation("flex_attention")
    with pytest.raises(UserError, match="no backward pass on a CPU"):
        response_logps(model, shared(groups, pad_id=0))
    monkeypatch.setattr(tree_mask, "check_trees", lambda trunk, device: None)
    monkeypatch.setattr(integration, "compile_friendly_flex_attention", without_compiling)
    with torch.no_grad():
        actual = response_logps(model, shared(groups, pad_id=0, tokens_per_row=30))
    torch.testing.assert_close(actual, expected, atol=1e-5, rtol=0)


def without_compiling(query, key, value, training, **options):
    return flex_attention(query, key, value, **options)


def test_the_mask_by_hand():
    batch = shared([TokenGroup([5], [[6, 7], [8]]), TokenGroup([9], [[4]])], pad_id=0, tokens_per_row=4)
    model = build(LlamaConfig(**SIZES)).base_model
    inputs = (batch.model_inputs["visible_until"], batch.model_inputs["position_ids"])
    mask = tree_mask._attention_mask(model, *inputs)
    assert mask.shape == (2, 1, 4, 4)
    assert mask[0, 0].long().tolist() == [[1, 0, 0, 0], [1, 1, 0, 0], [1, 1, 1, 0], [1, 0, 0, 1]]
    assert mask[1, 0].long().tolist() == [[1, 0, 0, 0], [1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]
    model.set_attn_implementation("eager")
    added = tree_mask._attention_mask(model, *inputs)
    assert torch.equal(added == 0, mask)
    assert (added[~mask] == torch.finfo(torch.float32).min).all()
