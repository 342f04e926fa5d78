"""The arithmetic of a plan, on numbers that can be done by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest

from lit_align.plan.advice import advice
from lit_align.plan.memory import Held, Work, moments, peak
from lit_align.plan.shapes import Shape

SHAPE = Shape(
    parameters=1000, outside_layers=200, linear=30, layers=4, width=8, cache_width=6, vocabulary=10, kept_per_token=100.0,
    kept_per_layer=7,
)  # fmt: skip
POLICY = Held("policy", SHAPE, width=4, trained=True)
WORK = Work(rows=2, columns=5, held=[POLICY, Held("reference", SHAPE, width=4)])


def test_one_device_by_hand():
    end, start, step = moments(WORK)
    always = {"weights of the policy": 4000, "weights of the reference": 4000, "optimiser": 8000}
    # Four layers of 10 tokens and what does not depend on them, and three float32 states of width 8 at the last norm.
    activations = 4 * (10 * 100 + 7) + 3 * 10 * 8 * 4
    logits = 4 * 10 * 10
    assert end.parts == always | {"gradients": 4000, "activations": activations, "logits": 2 * logits}
    assert start.parts == always | {"activations": activations, "logits": 3 * logits}
    assert step.parts == always | {"gradients": 4000, "copies of the step": 4000}
    assert peak(WORK) == end


def test_shards():
    sharded = moments(replace(WORK, ranks=4))[0].parts
    assert sharded["weights of the policy"] == sharded["gradients"] == 1000
    assert sharded["optimiser"] == 2000
    # Embeddings, head and two of the four layers.
    assert sharded["gathered layers"] == 4 * (200 + 400)
    offloaded = moments(replace(WORK, ranks=4, offload=True))[0].parts
    assert "weights of the policy" not in offloaded
    assert offloaded["gathered layers"] == 2400


def test_an_adapter_is_all_that_is_trained():
    adapted = replace(WORK, held=[replace(POLICY, rank=2, width=2), Held("reference", SHAPE, width=2, shares=True)])
    parts = moments(adapted)[0].parts
    # Ranks times widths in float32, beside weights of two bytes.
    assert parts["weights of the policy"] == 2000 + 2 * 30 * 4
    assert parts["gradients"] == 240
    assert parts["optimiser"] == 480
    assert "weights of the reference" not in parts


def test_layers_that_are_computed_again_keep_their_input():
    parts = moments(replace(WORK, recompute=True))[0].parts
    assert parts["activations"] == 1007 + 4 * 10 * 8 * 4 + 3 * 10 * 8 * 4


def test_sampling():
    found = moments(replace(WORK, sampled_rows=3, sampled_columns=7))[-1]
    assert found.name == "sampling"
    assert found.parts["KV cache"] == 3 * 7 * 4 * 6 * 4
    assert found.parts["logits"] == 3 * 10 * (4 + 8 + 16)


def test_advice_names_what_helps_most_first():
    said = advice(replace(WORK, columns=5000))
    assert said.startswith("What helps: half of max_length (")
    assert said.index("half the batch") < said.index("policy.activation_checkpointing: true")
    assert "fsdp2 on eight devices" in advice(WORK)


@pytest.mark.parametrize("change", [{"fused": True}, {"rows": 1}, {"recompute": True}, {"ranks": 2}])
def test_what_saves_memory_does(change):
    long = replace(WORK, columns=500)
    before, after = (moments(w) for w in (long, replace(long, **change)))
    assert sum(m.total for m in after) < sum(m.total for m in before)
