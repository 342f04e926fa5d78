"""The arithmetic of a plan, on numbers that can be done by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest

from lit_align.plan.advice import advice
from lit_align.plan.memory import NO_LOGITS, TRAINED_ENTROPY, Held, Work, moments, peak
from lit_align.plan.shapes import Shape

SHAPE = Shape(
    parameters=1000, outside_layers=200, head=80, own_head=80, linear=30, layers=4, width=8, cache_width=6, vocabulary=10,
    kept_per_token=100.0, kept_per_layer=7,
)  # fmt: skip
POLICY = Held("policy", SHAPE, width=4, trained=True)
WORK = Work(rows=2, columns=5, held=[POLICY, Held("reference", SHAPE, width=4)])
LAYER = 10 * 100 + 7
LAST_NORM = 3 * 10 * 8 * 4
"""Float32 states of width 8, of 10 tokens."""


def parts_of(work: Work) -> dict[str, dict[str, int]]:
    return {moment.name: moment.parts for moment in moments(work)}


def test_one_device_by_hand():
    found = parts_of(WORK)
    always = {"weights of the policy": 4000, "weights of the reference": 4000, "optimiser": 8000}
    activations = {"activations": 4 * LAYER + LAST_NORM}
    logits = 4 * 10 * 10
    assert found == {
        "end of the forward pass": always | {"gradients": 4000, "logits": 2 * logits} | activations,
        "start of the backward pass": always | {"logits": 3 * logits} | activations,
        "gradient of the head": always | {"logits": logits, "gradient of the head": 80 * 4} | activations,
        "optimiser step": always | {"gradients": 4000, "copies of the step": 4000},
    }
    assert peak(WORK).name == "end of the forward pass"
    accumulated = parts_of(replace(WORK, accumulates=True))
    assert accumulated["start of the backward pass"]["gradients"] == 4000


def test_logits_are_those_of_responses_and_in_chunks():
    logits = 4 * 10 * 2 * 3
    assert parts_of(replace(WORK, targets=3))["end of the forward pass"]["logits"] == 2 * logits
    wide = replace(POLICY, shape=SHAPE._replace(vocabulary=2**24))
    found = parts_of(replace(WORK, held=[wide], runs_frozen=True))
    # One token at a time, and nothing kept of the policy's when the reference runs.
    assert found["end of the forward pass"]["logits"] == found["forward pass without gradients"]["logits"] == 2 * 2**26
    assert found["start of the backward pass"]["logits"] == 3 * 2**26


def test_forward_passes_between_the_policys_and_the_backward_pass():
    logits = 4 * 10 * 10
    found = parts_of(replace(WORK, runs_frozen=True, extrapolates=True))
    # The policy's are kept, while those of the reference are made, and while five of both are mixed.
    assert found["forward pass without gradients"]["logits"] == 3 * logits
    assert found["extrapolation"]["logits"] == 6 * logits
    text = parts_of(replace(WORK, text=4))["forward pass over the text"]
    assert text["logits"] == logits + 2 * 4 * 10 * 4
    assert text["activations"] == 4 * (14 * 100 + 7) + 3 * 14 * 8 * 4


def test_a_critic_runs_after_the_policy_and_learns_before_it():
    critic = Held("critic", SHAPE, width=4, trained=True, is_reward=True)
    found = parts_of(replace(WORK, held=[POLICY, critic], logits=TRAINED_ENTROPY))
    logits = 4 * 10 * 10
    # Without the head of 80 weights, with one of width 8.
    assert found["optimiser step"]["weights of the critic"] == 4 * (1000 - 80 + 8)
    assert "activations of the critic" not in found["end of the forward pass"]
    assert found["end of the forward pass"]["logits"] == 4.25 * logits
    second = found["forward pass of the critic"]
    assert second["activations of the critic"] == second["activations"] == 4 * LAYER + LAST_NORM
    assert second["logits"] == 3.25 * logits
    assert found["start of the backward pass"]["gradients"] == 4 * 928
    assert found["start of the backward pass"]["logits"] == 6.25 * logits


def test_a_reward_model_has_no_logits():
    work = replace(WORK, held=[replace(POLICY, is_reward=True)], logits=NO_LOGITS)
    assert [moment.name for moment in moments(work)] == ["end of the forward pass", "optimiser step"]
    assert "logits" not in moments(work)[0].parts
    assert moments(work)[0].parts["weights of the policy"] == 4 * 928


def test_half_precision_keeps_the_head_a_second_time():
    found = parts_of(replace(WORK, half=True, runs_frozen=True))
    logits, cast = 4 * 10 * 10, 2 * 80
    assert found["end of the forward pass"]["logits"] == 2 * logits + cast
    assert found["forward pass without gradients"]["logits"] == 3 * logits + 2 * cast
    assert found["gradient of the head"]["gradient of the head"] == 80 * 4 + cast
    stored = parts_of(replace(WORK, half=True, held=[replace(POLICY, width=2)]))
    assert stored["end of the forward pass"]["logits"] == 2 * logits


def test_masks_of_shared_rows():
    assert parts_of(replace(WORK, mask=50))["optimiser step"] == parts_of(WORK)["optimiser step"]
    # Each layer keeps its own, in the precision of the computation.
    assert parts_of(replace(WORK, mask=50))["end of the forward pass"]["activations"] == 4 * (LAYER + 200) + LAST_NORM


def test_shards():
    sharded = moments(replace(WORK, ranks=4))[0].parts
    assert sharded["weights of the policy"] == sharded["gradients"] == 1000
    assert sharded["optimiser"] == 2000
    # Embeddings, head and two of the four layers.
    assert sharded["gathered layers"] == 4 * (200 + 400)
    offloaded = moments(replace(WORK, ranks=4, offload=True))[0].parts
    assert "weights of the policy" not in offloaded
    assert offloaded["gathered layers"] == 2400


def test_ddp_has_the_gradients_twice():
    assert moments(replace(WORK, buckets=True))[-1].parts["buckets of DDP"] == 4000


def test_an_adapter_is_all_that_is_trained():
    adapted = replace(WORK, held=[replace(POLICY, rank=2, width=2), Held("reference", SHAPE, width=2, shares=True)])
    parts = moments(adapted)[0].parts
    # Ranks times widths in float32, beside weights of two bytes.
    assert parts["weights of the policy"] == 2000 + 2 * 30 * 4
    assert parts["gradients"] == 240
    assert parts["optimiser"] == 480
    assert "weights of the reference" not in parts
    assert "gradient of the head" not in parts_of(adapted)["gradient of the head"]


def test_layers_that_are_computed_again_keep_their_input():
    found = parts_of(replace(WORK, held=[replace(POLICY, recompute=True)]))
    state = 10 * 8 * 4
    assert found["end of the forward pass"]["activations"] == 4 * state + LAST_NORM
    assert found["backward pass of the last layer"]["layer computed again"] == LAYER
    first = found["backward pass of the first layer"]
    assert (first["gradients"], first["activations"], first["layer computed again"]) == (4000, state, LAYER)


def test_sampling():
    found = moments(replace(WORK, sampled_rows=3, sampled_columns=7))[-1]
    assert found.name == "sampling"
    assert found.parts["KV cache"] == 3 * 7 * 4 * 6 * 4
    assert found.parts["logits"] == 3 * 10 * (4 + 8 + 16)
    # Those of the step before.
    assert found.parts["gradients"] == 4000


def test_advice_names_what_helps_most_first():
    long = replace(WORK, columns=5000)
    said = advice(long, room=peak(long).total - 1)
    assert said.startswith("What helps: half of max_length (")
    assert said.index("half the batch") < said.index("policy.activation_checkpointing: true")
    assert said.endswith(").")
    assert "fsdp2 on eight devices" in advice(WORK, room=20000)


def test_advice_where_no_one_change_is_enough():
    long = replace(WORK, columns=5000)
    quarter = replace(long, rows=1, columns=2500, accumulates=True)
    said = advice(long, room=peak(quarter).total)
    assert (
        "No one of them is enough; half of max_length + half the batch, and twice accumulate_grad_batches need " in said
    )
    assert advice(long, room=1).endswith("Take a smaller model as well.")


@pytest.mark.parametrize("change", [{"fused": True}, {"rows": 1}, {"columns": 250}, {"ranks": 2}])
def test_what_saves_memory_does(change):
    long = replace(WORK, columns=500)
    before, after = (moments(w) for w in (long, replace(long, **change)))
    assert sum(m.total for m in after) < sum(m.total for m in before)


def test_advice_counts_a_reference_of_its_own_where_weights_are_sharded():
    large = SHAPE._replace(parameters=80 * 10**9, outside_layers=0)
    one = replace(WORK, held=[replace(POLICY, shape=large), Held("reference", large, width=4)])
    half = replace(WORK, ranks=8, held=[
        replace(POLICY, shape=large, rank=16, width=2), Held("reference", large, width=2)])  # fmt: skip
    # Two bytes a weight, of policy and reference an eighth each, and two layers of four that are gathered whole.
    needed = 2 * 80 * (1 / 8 + 1 / 8 + 2 / 4)
    assert peak(half).total / 1e9 == pytest.approx(needed, abs=0.01)
    assert f"with policy.dtype: bfloat16 ({needed:.1f} GB)" in advice(replace(one, ranks=8), room=1)
    shared = replace(half, ranks=1, held=[half.held[0], replace(half.held[1], shares=True)])
    assert f"strategy: fsdp2 on eight devices ({needed:.1f} GB)" in advice(shared, room=1)
