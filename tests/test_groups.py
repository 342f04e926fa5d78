"""The structures every method learns from: ragged sums, pairs, and what Lightning does to a batch."""

from __future__ import annotations

import itertools

import pytest
import torch
from lightning.pytorch.plugins.precision import HalfPrecision
from lightning_utilities.core.apply_func import apply_to_collection

from lit_align.groups import GroupBatch, preferred_pairs, sum_by_response


@pytest.fixture
def batch() -> GroupBatch:
    """Two groups, of two responses and one, with 2, 1 and 3 tokens."""
    return GroupBatch(
        model_inputs={"input_ids": torch.arange(12).view(3, 4), "bias": torch.full((3, 4), 0.1)},
        predict_index=torch.tensor([0, 1, 4, 8, 9, 10]),
        targets=torch.tensor([1, 2, 5, 9, 10, 11]),
        response_index=torch.tensor([0, 0, 1, 2, 2, 2]),
        last_index=torch.tensor([2, 5, 11]),
        group_index=torch.tensor([0, 0, 1]),
        margins=torch.tensor([0.1, 0.2]),
        rows=torch.tensor([7, 3]),
        scores=torch.tensor([0.1, 0.3, 0.7]),
    )


def tensors_of(batch: GroupBatch) -> dict[str, torch.Tensor]:
    own = {name: value for name, value in vars(batch).items() if isinstance(value, torch.Tensor)}
    return own | batch.model_inputs


def test_sums_by_response_equal_a_loop() -> None:
    generator = torch.Generator().manual_seed(0)
    response_index = torch.randint(0, 6, (40,), generator=generator).sort().values
    response_index = response_index[response_index != 3]  # a response without tokens
    values = torch.randn(len(response_index), generator=generator)
    expected = [
        sum(v for v, n in zip(values.tolist(), response_index.tolist(), strict=True) if n == i) for i in range(7)
    ]
    sums = sum_by_response(values, response_index, 7)
    torch.testing.assert_close(sums, torch.tensor(expected, dtype=torch.float))
    assert sums[3] == sums[6] == 0


def test_sums_by_response_pass_gradients_on() -> None:
    values = torch.zeros(4, requires_grad=True)
    weights = torch.tensor([2.0, 3.0])
    weighted = weights * sum_by_response(values, torch.tensor([0, 0, 1, 1]), 2)
    (gradient,) = torch.autograd.grad(weighted.sum(), values)
    torch.testing.assert_close(gradient, torch.tensor([2.0, 2.0, 3.0, 3.0]))


@pytest.mark.parametrize("seed", range(5))
def test_preferred_pairs_equal_brute_force(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    group_index = torch.randint(0, 5, (20,), generator=generator).sort().values
    scores = torch.randint(0, 4, (20,), generator=generator).float()
    expected = [
        (i, j)
        for i, j in itertools.product(range(20), repeat=2)
        if group_index[i] == group_index[j] and scores[i] > scores[j]
    ]
    pairs = preferred_pairs(scores, group_index)
    assert list(zip(pairs.chosen.tolist(), pairs.rejected.tolist(), strict=True)) == expected


def test_ties_and_lone_responses_give_no_pairs() -> None:
    pairs = preferred_pairs(torch.tensor([1.0, 1.0, 5.0, 2.0]), torch.tensor([0, 0, 1, 2]))
    assert pairs.chosen.tolist() == pairs.rejected.tolist() == []


def test_sizes_and_lengths(batch: GroupBatch) -> None:
    assert (batch.n_responses, batch.n_groups) == (3, 2)
    assert batch.response_lengths.tolist() == [2, 1, 3]


def test_a_response_without_tokens_has_length_zero(batch: GroupBatch) -> None:
    batch.response_index = torch.tensor([0, 0, 1, 1, 1, 1])
    assert batch.response_lengths.tolist() == [2, 4, 0]


def test_to_moves_every_tensor_and_leaves_the_batch_alone(batch: GroupBatch) -> None:
    moved = batch.to("meta")
    assert {tensor.device.type for tensor in tensors_of(moved).values()} == {"meta"}
    assert {tensor.device.type for tensor in tensors_of(batch).values()} == {"cpu"}
    assert tensors_of(moved).keys() == tensors_of(batch).keys()
    assert moved.labels is None
    assert not moved.is_filler


def test_to_keeps_types_and_values(batch: GroupBatch) -> None:
    for name, tensor in tensors_of(batch.to("cpu")).items():
        assert tensor.dtype == tensors_of(batch)[name].dtype
        torch.testing.assert_close(tensor, tensors_of(batch)[name])


def test_half_precision_leaves_its_floats_alone(batch: GroupBatch) -> None:
    """A plain tensor shows that Lightning would have rounded them: 0.1 has no bfloat16."""
    plain, kept = HalfPrecision("bf16-true").convert_input((torch.tensor([0.1]), batch))
    assert plain.dtype == torch.bfloat16
    assert kept.scores.dtype == kept.margins.dtype == kept.model_inputs["bias"].dtype == torch.float32
    torch.testing.assert_close(kept.scores, torch.tensor([0.1, 0.3, 0.7]), rtol=0, atol=0)


def test_lightning_does_not_walk_into_it(batch: GroupBatch) -> None:
    seen: list[torch.Tensor] = []
    apply_to_collection([batch], torch.Tensor, seen.append)
    assert seen == []
