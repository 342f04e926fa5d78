"""Rows of one batch between two tokens: what the model keeps of them, and what it says comes next."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad
from transformers.cache_utils import Cache


class CausalForward:
    """Calls a causal language model with the arguments its forward pass takes, for the logits of the last column.

    Args:
        model: A causal language model of transformers, or a peft model around one.
    """

    def __init__(self, model: Any) -> None:
        self.model = model
        causal = model.get_base_model() if hasattr(model, "get_base_model") else model
        self._takes = frozenset(inspect.signature(causal.forward).parameters)

    @property
    def takes_cache(self) -> bool:
        """Whether keys and values can be handed to the model."""
        return "past_key_values" in self._takes

    def __call__(self, ids: Tensor, mask: Tensor | None, position: Tensor, cache: Cache) -> Tensor:
        """Logits that follow the last of these tokens.

        Args:
            ids: The columns to append, `(rows, columns)`.
            mask: 1 where a column of the cache, these included, holds a token of its row, `(rows, all columns)`; None where
                every column does.
            position: Of these tokens in their own text, from 0, `(rows, columns)`.
            cache: What came before; the columns are added to it.

        Returns:
            `(rows, V)`, in the model's precision.
        """
        more: dict[str, Any] = {}
        if "position_ids" in self._takes:
            more["position_ids"] = position
        if "logits_to_keep" in self._takes:
            more["logits_to_keep"] = 1
        output = self.model(input_ids=ids, attention_mask=mask, past_key_values=cache, use_cache=True, **more)
        logits: Tensor = output.logits[:, -1]
        return logits


class NotCachedError(Exception):
    """A model took a cache and did not fill it."""


class Rows:
    """Rows that get a token each at the same time.

    Prompts are padded on the left: a new token is then one column for all rows, and the distance between two columns is that
    between two tokens, which models with relative positions count on.

    Args:
        forward: The model.
        cache: Empty; the prompts are run into it, each once.
        prompts: R prompts as token ids, in order of length.
        k: Rows made of each prompt.
        first_slot: Number of the first row.
        max_new_tokens: Tokens of a row, at most.

    Attributes:
        slot: Number of each row, `(rows,)`.
        length: Tokens that each row has been given, `(rows,)`.
        alive: Whether a row is to be given more, `(rows,)`.
        logits: Of the next token, `(rows, V)`.

    Raises:
        NotCachedError: The model does not fill a cache.
    """

    def __init__(
        self,
        forward: CausalForward,
        cache: Cache,
        prompts: Sequence[Sequence[int]],
        k: int,
        first_slot: int,
        max_new_tokens: int,
    ) -> None:
        self._forward, self._cache, self._max_new_tokens = forward, cache, max_new_tokens
        ids, mask = left_padded(prompts, next(forward.model.parameters()).device)
        position = (mask.cumsum(dim=1) - 1).clamp(min=0)
        is_padded = len(prompts[0]) < len(prompts[-1])
        logits = forward(ids, mask if is_padded else None, position, cache)
        self._columns = ids.shape[1]
        if cache.get_seq_length() != self._columns:
            raise NotCachedError
        parents = torch.arange(len(prompts), device=ids.device).repeat_interleave(k)
        self.slot = first_slot + torch.arange(len(parents), device=ids.device)
        self.length = torch.zeros_like(self.slot)
        self.alive = torch.ones_like(self.slot, dtype=torch.bool)
        self.logits = logits[parents]
        self._position = position[:, -1:][parents]
        self._set_mask(mask[parents])
        self._select(parents, 0)

    def __len__(self) -> int:
        return len(self.slot)

    def advance(self, token: Tensor) -> None:
        """Runs the tokens just drawn, `(rows,)`, for the logits of those after them."""
        self._columns += 1
        # Rows that are finished go on until they leave, but not beyond the model's positions.
        self._position = self._position + self.alive[:, None]
        mask = None if self._mask is None else self._mask[:, : self._columns]
        self.logits = self._forward(token[:, None], mask, self._position, self._cache)

    def drop_finished(self) -> Tensor:
        """Keeps the rows that are alive, without their logits; returns their index among those before."""
        rows = self.alive.nonzero().squeeze(1)
        mask = self._seen()[rows]
        self.slot, self.length, self.alive = self.slot[rows], self.length[rows], self.alive[rows]
        self._position = self._position[rows]
        n_padding = 0 if self._mask is None else int((mask == 0).sum(dim=1).min())
        self._set_mask(mask[:, n_padding:])
        self._select(rows, n_padding)
        return rows

    def join(self, other: Rows) -> None:
        """Takes the rows of another batch below its own; the narrower of the two is padded on the left."""
        for own, more in zip(self._cache.layers, other._cache.layers, strict=True):
            own.join(more)
        masks = [self._seen(), other._seen()]
        self._columns = max(self._columns, other._columns)
        self._set_mask(torch.cat([pad(mask, (self._columns - mask.shape[1], 0)) for mask in masks]))
        for name in ("slot", "length", "alive", "logits", "_position"):
            setattr(self, name, torch.cat([getattr(self, name), getattr(other, name)]))

    def _seen(self) -> Tensor:
        """1 where a column holds a token of its row, `(rows, columns)`."""
        if self._mask is None:
            return self.slot.new_ones(len(self), self._columns)
        return self._mask[:, : self._columns]

    def _set_mask(self, seen: Tensor) -> None:
        """None where every column of every row holds a token; otherwise with columns for all tokens to come."""
        self._mask = None if bool(seen.all()) else pad(seen, (0, self._max_new_tokens), value=1)

    def _select(self, rows: Tensor, first_column: int) -> None:
        for layer in self._cache.layers:
            layer.keep(rows, first_column)
        self._columns -= first_column


def left_padded(prompts: Sequence[Sequence[int]], device: torch.device) -> tuple[Tensor, Tensor]:
    """Token ids and mask, 1 for a token of the prompt, both `(R, T)`."""
    width = max(map(len, prompts))
    ids = torch.tensor([[0] * (width - len(prompt)) + list(prompt) for prompt in prompts], device=device)
    mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts], device=device)
    return ids, mask
