"""A KV cache for sampling: room is reserved ahead, and finished rows leave it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer, DynamicSlidingWindowLayer

BLOCK = 128
"""Columns reserved at a time, at most."""


class ReservedLayer(DynamicLayer):  # type: ignore[misc]
    """Keys and values of one layer, `(rows, heads, columns, head size)`, with reserved columns behind the used ones.

    `DynamicLayer` copies the whole cache for every new token. Here a token is written in place, and the cache is copied when
    a block is full. What attention reads is a view of the used columns. Not differentiable: written under `no_grad` only.

    Args:
        block: Columns reserved at a time.
    """

    def __init__(self, block: int) -> None:
        super().__init__()
        self._block = block

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Appends columns and returns all used keys and values."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
            self._key_buffer, self._value_buffer = key_states, value_states
            self._show(key_states.shape[-2])
            return self.keys, self.values
        start, end = self.get_seq_length(), self.get_seq_length() + key_states.shape[-2]
        if end > self._key_buffer.shape[-2]:
            self._key_buffer = _with_room(self.keys, self._block)
            self._value_buffer = _with_room(self.values, self._block)
        self._key_buffer[:, :, start:end] = key_states
        self._value_buffer[:, :, start:end] = value_states
        self._show(end)
        return self.keys, self.values

    def get_seq_length(self) -> int:
        """Used columns."""
        return self._used if self.is_initialized else 0

    def keep(self, rows: Tensor, first_column: int) -> None:
        """Keeps these rows (an index, with repetitions where rows are to be multiplied), from `first_column` on."""
        used = self.get_seq_length() - first_column
        self._key_buffer = self.keys[:, :, first_column:].index_select(0, rows)
        self._value_buffer = self.values[:, :, first_column:].index_select(0, rows)
        self._show(used)

    def join(self, other: ReservedLayer) -> None:
        """Adds the rows of another layer below its own; the narrower of the two gets columns of 0 on the left."""
        used = max(self.get_seq_length(), other.get_seq_length())
        keys, values = (
            torch.cat([pad(part, (0, 0, used - part.shape[-2], self._block)) for part in parts])
            for parts in ((self.keys, other.keys), (self.values, other.values))
        )
        self._key_buffer, self._value_buffer = keys, values
        self._show(used)

    def _show(self, used: int) -> None:
        self._used = used
        self.keys = self._key_buffer[:, :, :used]
        self.values = self._value_buffer[:, :, :used]


def cache_obstacle(config: Any, columns: int) -> str:
    """Why a model cannot be sampled with a cache of `ReservedLayer`s; empty where it can.

    Args:
        config: The configuration of its language model.
        columns: The most tokens a row will have, prompt and response. A sliding window at least as wide never slides.
    """
    for layer in DynamicCache(config=config).layers:
        if type(layer) is DynamicSlidingWindowLayer and layer.sliding_window < columns:
            return (
                f"its attention window of {layer.sliding_window} tokens is narrower than prompt and response, {columns}"
            )
        if type(layer) not in (DynamicLayer, DynamicSlidingWindowLayer):
            return f"it keeps state in a {type(layer).__name__}, which is not a cache of keys and values alone"
    return ""


def reserved_cache(config: Any, max_new_tokens: int) -> Cache:
    """An empty cache for a model that has no `cache_obstacle`."""
    block = min(BLOCK, max_new_tokens)
    return Cache(layers=[ReservedLayer(block) for _ in DynamicCache(config=config).layers])


def _with_room(used: Tensor, columns: int) -> Tensor:
    rows, heads, n_used, size = used.shape
    roomy = used.new_empty(rows, heads, n_used + columns, size)
    roomy[:, :, :n_used] = used
    return roomy
