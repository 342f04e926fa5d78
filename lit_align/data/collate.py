"""Layouts: how groups stand in a model's input. A layout is a function `(groups, pad_id) -> GroupBatch`."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from typing import TypedDict

import torch
from torch import Tensor

from lit_align.groups import GroupBatch, TokenGroup


def padded(groups: Sequence[TokenGroup], pad_id: int) -> GroupBatch:
    """One row of model input for each response: the prompt, the response, and padding on the right.

    Masks and positions come from lengths and never from comparing token ids, so a pad token that also is EOS is harmless.

    Args:
        groups: At least one. All have scores or none has; the same for labels and weights.
        pad_id: What stands in the padding.

    Raises:
        ValueError: Some groups have scores (labels, weights) and others have none.
    """
    pairs = [(group.prompt, response) for group in groups for response in group.responses]
    prompt_lengths = torch.tensor([len(prompt) for prompt, _ in pairs])
    response_lengths = torch.tensor([len(response) for _, response in pairs])
    lengths = prompt_lengths + response_lengths
    width = int(lengths.max())
    positions = torch.arange(width)
    attention_mask = positions < lengths[:, None]
    input_ids = torch.full((len(pairs), width), pad_id)
    input_ids[attention_mask] = torch.tensor([*chain.from_iterable(chain.from_iterable(pairs))])
    in_response = attention_mask & (positions >= prompt_lengths[:, None])
    response_at = in_response.flatten().nonzero().squeeze(1)
    return GroupBatch(
        model_inputs={
            "input_ids": input_ids,
            "attention_mask": attention_mask.long(),
            "position_ids": positions.expand_as(input_ids).contiguous(),
        },
        predict_index=response_at - 1,
        targets=input_ids.flatten()[response_at],
        response_index=torch.arange(len(pairs)).repeat_interleave(response_lengths),
        last_index=torch.arange(len(pairs)) * width + lengths - 1,
        **facts(groups),
    )


class Facts(TypedDict):
    """The fields of a `GroupBatch` that no layout has a say in."""

    group_index: Tensor
    margins: Tensor
    rows: Tensor
    scores: Tensor | None
    labels: Tensor | None
    token_weights: Tensor | None


def facts(groups: Sequence[TokenGroup]) -> Facts:
    """What is known of the groups and their responses, as a `GroupBatch` has it.

    Raises:
        ValueError: Some groups have scores (labels, weights) and others have none.
    """
    group_sizes = torch.tensor([len(group.responses) for group in groups])
    return {
        "group_index": torch.arange(len(groups)).repeat_interleave(group_sizes),
        "margins": torch.tensor([group.margin for group in groups]),
        "rows": torch.tensor([group.row for group in groups]),
        "scores": _flat([group.scores for group in groups], torch.float32, "scores"),
        "labels": _flat([group.labels for group in groups], torch.bool, "labels"),
        "token_weights": _flat([_of_tokens(group) for group in groups], torch.float32, "weights"),
    }


def _of_tokens(group: TokenGroup) -> list[float] | None:
    return None if group.weights is None else [*chain.from_iterable(group.weights)]


def _flat(values: Sequence[Sequence[float] | None], dtype: torch.dtype, what: str) -> Tensor | None:
    known = [of_group for of_group in values if of_group is not None]
    if not known:
        return None
    if len(known) < len(values):
        raise ValueError(f"Some groups of the batch have {what} and others have none.")
    return torch.tensor([*chain.from_iterable(known)], dtype=dtype)
