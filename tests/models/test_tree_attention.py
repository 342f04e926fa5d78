"""Attention in pieces: the cut by hand, and values and gradients against every response alone."""

from __future__ import annotations

import copy

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, LlamaConfig

from lit_align.data.collate import padded
from lit_align.data.shared_layout import shared
from lit_align.groups import TokenGroup, preferred_pairs, sum_by_response
from lit_align.models import response_logps, response_rewards, tree_attention, tree_mask
from lit_align.models.tree_attention import IN_PIECES, cut, is_worth_it

SIZES = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 40}


@pytest.fixture(autouse=True)
def always_in_pieces(monkeypatch):
    """Calls take no time, so that even a few tokens are worth it."""
    monkeypatch.setattr(tree_attention, "CALL", -1e9)


def build(config, kind=AutoModelForCausalLM):
    torch.manual_seed(0)
    return kind.from_config(config, attn_implementation="sdpa").eval()  # without dropout


def trees_of(groups, **layout):
    batch = shared(groups, pad_id=0, **layout)
    return batch, cut(batch.model_inputs["visible_until"], batch.model_inputs["position_ids"])


def test_the_cut_by_hand():
    groups = [TokenGroup([5, 6], [[7, 1], [8, 9, 1]]), TokenGroup([2], [[1]]), TokenGroup([3, 4], [[1]])]
    _, trees = trees_of(groups, tokens_per_row=7)
    # Rows: 5 6 | 7 1 | 8 9 1 and 3 4 1 | 2 1 and two columns of padding. One response is one segment with its prompt.
    assert trees.keep.tolist() == [*range(12)]
    assert trees.lengths == [2, 2, 3, 3, 2]
    assert [piece.prompt for piece in trees.pieces] == [None, 0, 0, None, None]
    assert trees.pieces[1].mask.long().tolist() == [[1, 1, 1, 0], [1, 1, 1, 1]]
    assert trees.pieces[2].mask.long().tolist() == [[1, 1, 1, 0, 0], [1, 1, 1, 1, 0], [1, 1, 1, 1, 1]]
    assert trees.scores == 2 * 2 + 2 * 4 + 3 * 5 + 3 * 3 + 2 * 2


@pytest.mark.parametrize("tokens_per_row", [1, 25, 60, 1000])
def test_segments_are_prompts_and_responses(random_groups, tokens_per_row):
    groups = random_groups([3, 1, 2, 5, 1, 2], seed=1)
    batch, trees = trees_of(groups, tokens_per_row=tokens_per_row)
    tokens = batch.model_inputs["input_ids"].flatten()[trees.keep].split(trees.lengths)
    found = []
    for segment, piece in zip(tokens, trees.pieces, strict=True):
        if piece.prompt is None:
            found.append([segment.tolist()])
        else:
            found[-1].append(segment.tolist())
    whole = [[g.prompt, *g.responses] if len(g.responses) > 1 else [[*g.prompt, *g.responses[0]]] for g in groups]
    assert sorted(found) == sorted(whole)


def values_and_gradients(model, batch, of_tokens):
    model.zero_grad()
    if of_tokens:
        values = response_logps(model, batch)
        sums = sum_by_response(values, batch.response_index, batch.n_responses)
    else:
        values = sums = response_rewards(model, batch)
    chosen, rejected = preferred_pairs(batch.scores, batch.group_index)
    loss = -torch.nn.functional.logsigmoid(sums[chosen] - sums[rejected]).mean()
    loss.backward()
    gradients = [torch.zeros_like(p) if p.grad is None else p.grad.clone() for p in model.parameters()]
    return values.detach(), loss.detach(), gradients


@pytest.mark.parametrize("of_tokens", [True, False], ids=["logps", "rewards"])
@pytest.mark.parametrize("tokens_per_row", [1, 40, 1000])
def test_agrees_with_padded(architecture, of_tokens, tokens_per_row, random_groups):
    architecture.num_labels = 1
    model = build(architecture, AutoModelForCausalLM if of_tokens else AutoModelForSequenceClassification)
    groups = random_groups([2, 1, 5, 3, 2, 4], seed=3)
    expected = values_and_gradients(model, padded(groups, pad_id=0), of_tokens)
    actual = values_and_gradients(model, shared(groups, pad_id=0, tokens_per_row=tokens_per_row), of_tokens)
    assert model.config._attn_implementation == IN_PIECES
    torch.testing.assert_close(actual, expected, atol=1e-5, rtol=1e-5)


def test_what_padded_computes_stays_the_same(architecture, random_groups):
    model = build(architecture)
    groups = random_groups([2, 3])
    before = response_logps(model, padded(groups, pad_id=0))
    response_logps(model, shared(groups, pad_id=0))
    assert torch.equal(response_logps(model, padded(groups, pad_id=0)), before)


def test_generates_what_it_did(architecture):
    model = build(architecture)
    other = copy.deepcopy(model)
    tree_mask.check_trees(other.base_model, torch.device("cpu"))
    assert other.config._attn_implementation == IN_PIECES
    prompts = torch.tensor([[0, 0, 5, 6], [7, 8, 9, 10]])
    samples = [
        one.generate(input_ids=prompts, attention_mask=prompts > 0, max_new_tokens=6, do_sample=False, pad_token_id=0)
        for one in (model, other)
    ]
    assert torch.equal(*samples)


@pytest.mark.filterwarnings("ignore:`gradient_checkpointing_enable` is deprecated")  # transformers 5.23 (2026-11)
def test_gradient_checkpointing_recomputes_the_same(random_groups):
    model = build(LlamaConfig(**SIZES)).train()
    batch = shared(random_groups([2, 3]), pad_id=0)
    expected = values_and_gradients(model, batch, True)
    model.gradient_checkpointing_enable({"use_reentrant": False})
    torch.testing.assert_close(values_and_gradients(model, batch, True), expected, atol=1e-6, rtol=1e-6)


def test_bf16(architecture, random_groups):
    groups = random_groups([3, 2, 4])
    model = build(architecture)
    expected = response_logps(model, padded(groups, pad_id=0))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = response_logps(model, shared(groups, pad_id=0))
    true = response_logps(build(architecture).bfloat16(), shared(groups, pad_id=0))
    torch.testing.assert_close(mixed, expected, atol=0.02, rtol=0)
    torch.testing.assert_close(true, expected, atol=0.02, rtol=0)


def test_a_layer_that_changes_its_scores_is_refused():
    query = torch.zeros(1, 4, 3, 8)
    with pytest.raises(ValueError, match="Linear changes its scores with softcap"):
        tree_attention.attend(torch.nn.Linear(1, 1), query, query, query, None, trees=object(), softcap=50.0)


def test_what_costs_less(monkeypatch):
    monkeypatch.setattr(tree_attention, "CALL", 1000)
    # 3 pieces, 7 tokens in a row of 9: 2 of padding, and 81 - (4 + 8 + 15) scores.
    _, trees = trees_of([TokenGroup([5, 6], [[7, 1], [8, 9, 1]])])
    assert not is_worth_it(trees, (1, 9), hidden=5)  # 12 * 25 * 2 + 2 * 5 * 54 = 1140 < 3000
    assert is_worth_it(trees, (1, 9), hidden=10)  # 2400 + 1080 = 3480
