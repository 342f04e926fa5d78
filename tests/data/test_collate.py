"""The padded layout, against a batch laid out by hand and a row-by-row brute force."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from lit_align.data.collate import padded
from lit_align.data.shared_layout import shared
from lit_align.groups import GroupBatch, TokenGroup

GROUPS = [
    TokenGroup([5, 6], [[7, 1], [8, 9, 1]], scores=[1.0, 0.0], margin=0.5, row=3),
    TokenGroup([2], [[1]], scores=[2.0], row=8),
]


def test_by_hand() -> None:
    batch = padded(GROUPS, pad_id=0)
    assert batch.model_inputs["input_ids"].tolist() == [[5, 6, 7, 1, 0], [5, 6, 8, 9, 1], [2, 1, 0, 0, 0]]
    assert batch.model_inputs["attention_mask"].tolist() == [[1, 1, 1, 1, 0], [1, 1, 1, 1, 1], [1, 1, 0, 0, 0]]
    assert batch.model_inputs["position_ids"].tolist() == [[0, 1, 2, 3, 4]] * 3
    assert batch.predict_index.tolist() == [1, 2, 6, 7, 8, 10]
    assert batch.targets.tolist() == [7, 1, 8, 9, 1, 1]
    assert batch.response_index.tolist() == [0, 0, 1, 1, 1, 2]
    assert batch.last_index.tolist() == [3, 9, 11]
    assert batch.group_index.tolist() == [0, 0, 1]
    assert batch.margins.tolist() == [0.5, 0.0]
    assert batch.rows.tolist() == [3, 8]
    assert batch.scores is not None
    assert batch.scores.tolist() == [1.0, 0.0, 2.0]
    assert batch.scores.dtype == torch.float32
    assert batch.labels is None
    assert not batch.is_filler


def test_labels_are_boolean() -> None:
    batch = padded([TokenGroup([1], [[2]], labels=[True]), TokenGroup([1], [[2]], labels=[False])], pad_id=0)
    assert batch.labels is not None
    assert batch.labels.dtype == torch.bool
    assert batch.labels.tolist() == [True, False]
    assert batch.scores is None


def test_scores_of_some_groups_only_are_refused() -> None:
    with pytest.raises(ValueError, match="Some groups of the batch have scores"):
        padded([GROUPS[0], TokenGroup([1], [[2]])], pad_id=0)


def test_index_tensors_lead_from_responses_to_the_input(random_groups: Callable[..., list[TokenGroup]]) -> None:
    groups = random_groups([3, 1, 2, 4])
    batch = padded(groups, pad_id=0)
    ids, positions = (batch.model_inputs[name].flatten() for name in ("input_ids", "position_ids"))
    mask = batch.model_inputs["attention_mask"].bool().flatten()
    n = 0
    for g, group in enumerate(groups):
        for response in group.responses:
            at = batch.predict_index[batch.response_index == n] + 1
            assert ids[at].tolist() == list(response)
            assert batch.targets[batch.response_index == n].tolist() == list(response)
            assert positions[at].tolist() == list(range(len(group.prompt), len(group.prompt) + len(response)))
            assert ids[at[0] - len(group.prompt) : at[0]].tolist() == list(group.prompt)
            assert batch.last_index[n] == at[-1]
            assert mask[at].all()
            assert batch.group_index[n] == g
            n += 1
    assert n == batch.n_responses
    assert batch.response_lengths.tolist() == [len(response) for group in groups for response in group.responses]
    assert int(mask.sum()) == sum(len(group.prompt) + len(response) for group in groups for response in group.responses)


def _flat(batch: GroupBatch) -> list[torch.Tensor]:
    assert batch.scores is not None
    return [batch.targets, batch.response_index, batch.group_index, batch.scores, batch.margins, batch.rows]


def test_padding_changes_nothing_but_padding(random_groups: Callable[..., list[TokenGroup]]) -> None:
    groups = random_groups([2, 3])
    batch = padded(groups, pad_id=0)
    wider = padded([*groups, TokenGroup([5] * 30, [[1]], scores=[0.0], row=2)], pad_id=0)
    for narrow, wide in zip(_flat(batch), _flat(wider), strict=True):
        assert torch.equal(wide[: len(narrow)], narrow)
    width, new_width = batch.model_inputs["input_ids"].shape[1], wider.model_inputs["input_ids"].shape[1]
    row, column = batch.predict_index // width, batch.predict_index % width
    assert torch.equal(wider.predict_index[: len(row)], row * new_width + column)


def test_a_pad_token_that_also_ends_responses_is_harmless(random_groups: Callable[..., list[TokenGroup]]) -> None:
    groups = random_groups([2, 3, 1])
    batch, other = padded(groups, pad_id=0), padded(groups, pad_id=1)
    for name in ("predict_index", "targets", "response_index", "last_index", "group_index"):
        assert torch.equal(getattr(batch, name), getattr(other, name))
    for name in ("attention_mask", "position_ids"):
        assert torch.equal(batch.model_inputs[name], other.model_inputs[name])


def test_order_of_groups_carries_through(random_groups: Callable[..., list[TokenGroup]]) -> None:
    groups = random_groups([2, 3, 1, 4])
    batch, turned = padded(groups, pad_id=0), padded(groups[::-1], pad_id=0)
    assert batch.scores is not None
    assert turned.scores is not None
    for g in range(4):
        mine, theirs = batch.group_index == g, turned.group_index == 3 - g
        assert torch.equal(batch.scores[mine], turned.scores[theirs])
        of_mine = torch.isin(batch.response_index, mine.nonzero())
        of_theirs = torch.isin(turned.response_index, theirs.nonzero())
        assert torch.equal(batch.targets[of_mine], turned.targets[of_theirs])
    assert batch.rows.tolist() == turned.rows.tolist()[::-1]


def test_weights_of_tokens_by_hand() -> None:
    groups = [
        TokenGroup([5], [[7, 1], [8, 9, 1]], weights=[[0.5, 1.0], [2.0, 0.0, 1.0]]),
        TokenGroup([2], [[1]], weights=[[3.0]]),
    ]
    batch = padded(groups, pad_id=0)
    assert batch.token_weights is not None
    assert batch.token_weights.tolist() == [0.5, 1.0, 2.0, 0.0, 1.0, 3.0]
    assert batch.token_weights.dtype == torch.float32
    assert batch.weighted_sums(torch.tensor([2.0, 1.0, 1.0, 5.0, 1.0, 2.0])).tolist() == [2.0, 3.0, 6.0]
    assert padded(GROUPS, pad_id=0).token_weights is None
    assert padded(GROUPS, pad_id=0).weighted_sums(torch.ones(6)).tolist() == [2.0, 3.0, 1.0]


def test_weights_of_some_groups_only_are_refused() -> None:
    with pytest.raises(ValueError, match="Some groups of the batch have weights"):
        padded([TokenGroup([5], [[7]], weights=[[0.5]]), TokenGroup([2], [[1]])], pad_id=0)


def test_weights_are_the_same_in_every_layout(random_groups: Callable[..., list[TokenGroup]]) -> None:
    generator = torch.Generator().manual_seed(1)
    groups = [
        group._replace(weights=[torch.rand(len(r), generator=generator).tolist() for r in group.responses])
        for group in random_groups([3, 1, 2])
    ]
    batch, packed = padded(groups, pad_id=0), shared(groups, pad_id=0, tokens_per_row=24)
    assert batch.token_weights is not None
    assert packed.token_weights is not None
    assert torch.equal(batch.token_weights, packed.token_weights)
    assert torch.equal(batch.targets, packed.targets)
