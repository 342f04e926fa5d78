from __future__ import annotations

import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import LlamaConfig, LlamaForCausalLM

from callbacks.matrix_rate import matrix_rate
from callbacks.model_flops import NONE, Tokens, batch_tokens, training_flops
from lit_align.data import padded, shared
from lit_align.groups import TokenGroup
from lit_align.models import response_logps
from lit_align.rollout.loader import RolloutBatch

GROUPS = [TokenGroup([5, 6, 7], [[8, 1], [9, 9, 1]]), TokenGroup([4], [[3, 3, 3, 1]])]
CONFIG = LlamaConfig(
    vocab_size=40, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2
)  # fmt: skip


def test_padding_is_no_token():
    # Rows of 5, 6 and 5 tokens; a row of n has n (n + 1) / 2 pairs; responses of 2, 3 and 4.
    assert batch_tokens(padded(GROUPS, pad_id=0)) == Tokens(16, 15 + 21 + 15, 9)


def test_the_shared_layout_has_its_prompts_once():
    # The prompt of the first group is there once: 3 + 2 + 3 tokens, attending to 1 2 3, 4 5, 4 5 6.
    expected = Tokens(8 + 5, 6 + 9 + 15 + 15, 9)
    assert batch_tokens(shared(GROUPS, pad_id=0, tokens_per_row=64)) == expected
    assert batch_tokens(shared(GROUPS, pad_id=0, tokens_per_row=8)) == expected  # two rows, one of them with padding


def test_batches_of_other_kinds():
    batch = padded(GROUPS, pad_id=0)
    once = batch_tokens(batch)
    assert batch_tokens(RolloutBatch(batch, text=batch)) == once + once
    mask = torch.tensor([[1, 1, 1], [0, 1, 1]])
    assert batch_tokens({"input_ids": torch.ones(2, 3), "attention_mask": mask}) == Tokens(5, 6 + 3, 5)
    assert batch_tokens({"input_ids": torch.ones(2, 3)}) == Tokens(6, 12, 6)
    batch.is_filler = True
    assert batch_tokens(batch) == batch_tokens(RolloutBatch(batch)) == batch_tokens(torch.ones(3)) == NONE


def test_flops_are_those_that_torch_counts():
    """On one row without padding; torch counts all pairs of tokens, also those that the mask hides, hence tokens squared."""
    model = LlamaForCausalLM(CONFIG)
    model.config._attn_implementation = "eager"  # of which torch counts the products
    batch = padded([TokenGroup(list(range(2, 12)), [list(range(2, 22))])], pad_id=0)
    with FlopCounterMode(display=False) as counter:
        response_logps(model, batch).sum().backward()
    counted = batch_tokens(batch)
    flops = training_flops(model, Tokens(counted.trunk, counted.trunk**2, counted.predicted))
    # Nothing needs the gradient of the embeddings but the first layer's q, k and v, which is in both; norms are vectors.
    norms = sum(p.numel() for name, p in model.named_parameters() if "norm" in name)
    rotary = counter.get_total_flops() - (flops - 6 * norms * counted.trunk)
    assert abs(rotary) / flops < 0.01


def test_a_frozen_weight_costs_no_gradient():
    model = LlamaForCausalLM(CONFIG)
    tokens = Tokens(10, 0, 0)
    before = training_flops(model, tokens)
    model.model.layers[0].requires_grad_(False)
    frozen = sum(p.numel() for p in model.model.layers[0].parameters())
    assert before - training_flops(model, tokens) == 2 * 10 * frozen


def test_the_matrix_rate_is_measured_once_and_draws_nothing():
    torch.manual_seed(0)
    expected = torch.rand(())
    torch.manual_seed(0)
    rate = matrix_rate(torch.device("cpu"), torch.float32)
    assert torch.rand(()) == expected
    assert rate > 1e8
    assert matrix_rate(torch.device("cpu"), torch.float32) == rate
