"""The `shared` layout: a prompt once, its responses behind it, several such trees in a row.

A pair of responses to a prompt of 300 tokens is 300 tokens less to run than in the `padded` layout, and rows are filled with
other groups instead of padding.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from itertools import chain

import torch

from lit_align.data.collate import facts
from lit_align.groups import GroupBatch, TokenGroup


def shared(groups: Sequence[TokenGroup], pad_id: int, tokens_per_row: int = 1024) -> GroupBatch:
    """Rows that hold whole groups, each a tree: the prompt, then its K responses, all beginning at the same position.

    The tree is in `model_inputs["visible_until"] (R, T)`: the column before which a token may be seen, from its own column
    on. It is the end of the group for a prompt token, the end of the response for a response token, and the next column for
    padding, which sees itself. `lit_align.models.tree_mask` makes a mask of it where the model is, so that no mask travels.

    The first token of every response of a group is predicted from one column, that of the last prompt token.

    Args:
        groups: At least one. All have scores or none has; the same for labels and weights.
        pad_id: What stands in the padding.
        tokens_per_row: Width of a row, at most, unless one group alone is longer; then of the longest group.

    Raises:
        ValueError: Some groups have scores (labels, weights) and others have none.
    """
    # Segments: of each group the prompt, then its responses. S segments, `S = G + N`.
    segments = [*chain.from_iterable((group.prompt, *group.responses) for group in groups)]
    per_group = torch.tensor([1 + len(group.responses) for group in groups])
    length = torch.tensor([len(segment) for segment in segments])
    group_of = torch.arange(len(groups)).repeat_interleave(per_group)
    size = torch.zeros(len(groups), dtype=torch.long).index_add(0, group_of, length)
    row, column = (torch.tensor(values) for values in pack(size.tolist(), tokens_per_row))
    width = int((column + size).max())

    prompt = per_group.cumsum(0) - per_group
    is_response = torch.ones(len(segments), dtype=torch.bool).index_fill(0, prompt, False)
    begin = length.cumsum(0) - length  # in all tokens, one behind the other
    start = column[group_of] + begin - begin[prompt][group_of]  # column of the segment's first token
    end = torch.where(is_response, start + length, (column + size)[group_of])
    first_position = torch.where(is_response, length[prompt][group_of], 0)

    segment_of = torch.arange(len(segments)).repeat_interleave(length)
    within = torch.arange(len(segment_of)) - begin[segment_of]
    place = (row[group_of] * width + start)[segment_of] + within
    tokens = torch.tensor([*chain.from_iterable(segments)])

    shape = (int(row.max()) + 1, width)
    input_ids = torch.full(shape, pad_id)
    position_ids = torch.zeros(shape, dtype=torch.long)
    visible_until = torch.arange(1, width + 1).expand(shape).contiguous()
    input_ids.view(-1)[place] = tokens
    position_ids.view(-1)[place] = first_position[segment_of] + within
    visible_until.view(-1)[place] = end[segment_of]

    in_response = is_response[segment_of]
    last_of_prompt = (row * width + column + length[prompt] - 1)[group_of]
    return GroupBatch(
        model_inputs={"input_ids": input_ids, "position_ids": position_ids, "visible_until": visible_until},
        predict_index=torch.where(within == 0, last_of_prompt[segment_of], place - 1)[in_response],
        targets=tokens[in_response],
        response_index=torch.arange(int(is_response.sum())).repeat_interleave(length[is_response]),
        last_index=place[(begin + length - 1)[is_response]],
        **facts(groups),
    )


def pack(sizes: Sequence[int], tokens_per_row: int) -> tuple[list[int], list[int]]:
    """Where groups go: into as few rows as will do, about equally long, because every row is padded to the longest.

    The longest group first, each goes to the row that is shortest so far; if a row overflows, there is one row more.

    Args:
        sizes: Tokens of each group.
        tokens_per_row: What a row holds, or the longest group if that is more.

    Returns:
        Row and first column of each group.
    """
    limit = max(tokens_per_row, *sizes)
    n_rows = -(-sum(sizes) // limit)
    order = sorted(range(len(sizes)), key=lambda group: -sizes[group])
    while True:
        rows, columns = [0] * len(sizes), [0] * len(sizes)
        filled = [(0, row) for row in range(n_rows)]
        for group in order:
            columns[group], rows[group] = filled[0]
            heapq.heapreplace(filled, (columns[group] + sizes[group], rows[group]))
        if max(filled)[0] <= limit:
            return rows, columns
        n_rows += 1
