"""Attention over trees, cut into pieces: a prompt over itself, each response over its prompt and itself.

Under one mask for a whole row, every pair of its columns is computed, most of them only to be masked. Cut up, each piece is an
attention of its own, no larger than what its tokens see, and the input has neither padding nor rows. It is the same
`scaled_dot_product_attention` that the implementation `sdpa` calls, and is registered with transformers under a name of its
own, which does what `sdpa` does where a model is given no trees.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import repeat_kv, sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

IN_PIECES = "lit_align_sdpa_in_pieces"

CALL = 2.5e6
"""Multiply-adds for which there is time while one attention is called: 80 microseconds of a CPU core in bf16."""


class Piece(NamedTuple):
    """An attention of its own.

    Args:
        prompt: The segment that its tokens see besides themselves; None where they see themselves alone.
        mask: What each token sees of both, `(own, prompt + own)`; None without a prompt.
    """

    prompt: int | None
    mask: Tensor | None


class Trees:
    """The trees of a batch, without padding. It is a plain class, so that nothing that walks through arguments walks into it.

    Args:
        keep: Places of all tokens, flat into `R * T`, `(n,)`.
        lengths: Tokens of each segment: the prompt of a tree, each of its responses, the next prompt.
        pieces: One for each segment.
    """

    def __init__(self, keep: Tensor, lengths: list[int], pieces: list[Piece]) -> None:
        self.keep = keep
        self.lengths = lengths
        self.pieces = pieces

    @property
    def scores(self) -> int:
        """Pairs of a query and a key for which a score is computed, for one head."""
        behind = [0 if piece.prompt is None else self.lengths[piece.prompt] for piece in self.pieces]
        return sum(own * (own + prompt) for own, prompt in zip(self.lengths, behind, strict=True))


def cut(visible_until: Tensor, position_ids: Tensor) -> Trees:
    """Finds the segments: wherever a tree begins, or tokens begin to be seen until another column.

    The one response of a prompt that has no other is seen until the same column as the prompt. Both are then one segment, which
    is what they are to attention.

    Args:
        visible_until: As in `lit_align.data.shared_layout`, `(R, T)`.
        position_ids: The same, `(R, T)`.
    """
    rows, width = visible_until.shape
    column = torch.arange(width, device=visible_until.device)
    keep = ((visible_until > column + 1) | (position_ids > 0)).flatten().nonzero().squeeze(1)
    row_begins = torch.arange(rows, device=visible_until.device)[:, None] * width
    until, position = (visible_until + row_begins).flatten()[keep], position_ids.flatten()[keep]
    is_first = position == 0
    begins = is_first.clone()
    begins[1:] |= until[1:] != until[:-1]
    first = begins.nonzero().squeeze(1)
    ends = torch.cat([first[1:], first.new_tensor([len(keep)])])
    lengths: list[int] = (ends - first).tolist()
    pieces: list[Piece] = []
    prompt = 0
    for segment, (own, is_prompt) in enumerate(zip(lengths, is_first[first].tolist(), strict=True)):
        if is_prompt:
            prompt = segment
            pieces.append(Piece(None, None))
        else:
            mask = torch.ones(own, lengths[prompt] + own, dtype=torch.bool, device=keep.device).tril(lengths[prompt])
            pieces.append(Piece(prompt, mask))
    return Trees(keep, lengths, pieces)


def is_worth_it(trees: Trees, shape: Sequence[int], hidden: int) -> bool:
    """Whether a layer costs less in pieces than on rows under a mask.

    It is estimated in multiply-adds: of a layer's matrices `12 * hidden ** 2` a token, padding included; of attention
    `2 * hidden` a score; of pieces the time of their calls. Many short trees are cheaper on rows.

    Args:
        trees: The batch in pieces.
        shape: R and T.
        hidden: Width of the model.
    """
    rows, width = shape
    padding = rows * width - len(trees.keep)
    more_scores = rows * width**2 - trees.scores
    return 12 * hidden**2 * padding + 2 * hidden * more_scores > CALL * len(trees.pieces)


def attend(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    trees: Trees | None = None,
    **others: Any,
) -> tuple[Tensor, Tensor | None]:
    """What a layer of transformers calls, as its `AttentionInterface` has it.

    Args:
        module: The layer.
        query: `(1, heads, n, D)`.
        key: `(1, key heads, n, D)`.
        value: As `key`.
        attention_mask: Of no use with `trees`.
        dropout: Rate.
        scaling: Of the scores.
        trees: The pieces; without them this is `sdpa`.
        others: What `sdpa` takes besides.

    Raises:
        ValueError: The layer changes its scores in a way that `scaled_dot_product_attention` cannot.
    """
    if trees is None:
        output: tuple[Tensor, Tensor | None] = sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **others
        )
        return output
    changed = [name for name in ("softcap", "position_bias", "s_aux") if others.get(name) is not None]
    if changed:
        raise ValueError(f"{type(module).__name__} changes its scores with {changed[0]}.")
    shared_by = getattr(module, "num_key_value_groups", 1)
    # `split` has one concatenation for its backward pass, where slices would each have a whole tensor of zeros.
    queries, keys, values = (
        tensor.split(trees.lengths, dim=2) for tensor in (query, repeat_kv(key, shared_by), repeat_kv(value, shared_by))
    )
    outputs = []
    for q, k, v, piece in zip(queries, keys, values, trees.pieces, strict=True):
        if piece.prompt is None:
            seen_k, seen_v = k, v
        else:
            seen_k, seen_v = torch.cat([keys[piece.prompt], k], 2), torch.cat([values[piece.prompt], v], 2)
        outputs.append(
            scaled_dot_product_attention(
                q, seen_k, seen_v, piece.mask, dropout, is_causal=piece.mask is None, scale=scaling
            )
        )
    return torch.cat(outputs, dim=2).transpose(1, 2).contiguous(), None


AttentionInterface.register(IN_PIECES, attend)
AttentionMaskInterface.register(IN_PIECES, sdpa_mask)
