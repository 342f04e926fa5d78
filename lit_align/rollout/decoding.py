"""The inner loop of sampling: rows of one batch, one token at a time."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache

from lit_align.models.sampling import Sampling


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


class Decoding:
    """Rows of one batch between two tokens.

    Prompts are padded on the left: a new token is then one column for all rows, and the distance between two columns is that
    between two tokens, which models with relative positions count on.

    Args:
        forward: The model.
        cache: Empty; the prompts are run into it, each once.
        prompts: R prompts as token ids.
        k: Rows made of each prompt.
        max_new_tokens: Columns to make room for behind the prompts.
    """

    def __init__(
        self, forward: CausalForward, cache: Cache, prompts: Sequence[Sequence[int]], k: int, max_new_tokens: int
    ) -> None:
        self._forward, self._cache = forward, cache
        ids, mask = left_padded(prompts, next(forward.model.parameters()).device)
        position = (mask.cumsum(dim=1) - 1).clamp(min=0)
        is_padded = len(prompts[0]) < len(prompts[-1])
        logits = forward(ids, mask if is_padded else None, position, cache)
        self._columns = ids.shape[1]
        self.is_cached = cache.get_seq_length() == self._columns
        if not self.is_cached:
            return
        parents = torch.arange(len(prompts), device=ids.device).repeat_interleave(k)
        self.slot = torch.arange(len(parents), device=ids.device)
        self.alive = torch.ones_like(self.slot, dtype=torch.bool)
        self.tokens = ids.new_zeros(len(parents), max_new_tokens)
        self.logits = logits[parents]
        self._position = position[:, -1:][parents]
        room = mask.new_ones(len(prompts), max_new_tokens)
        self._keep(parents, torch.cat([mask, room], dim=1)[parents])

    def run(self, sampling: Sampling, stop_ids: Sequence[int], look_every: int, compact_below: float) -> Tensor:
        """Samples until every row has met a stop token or is full.

        Args:
            sampling: The distribution to draw from.
            stop_ids: Tokens that finish a row.
            look_every: Tokens between two counts of the rows alive, each of which waits for the device.
            compact_below: Finished rows leave when no more than this share is alive.

        Returns:
            Sampled tokens, `(R * k, max_new_tokens)`. What follows a row's first stop token means nothing.
        """
        stop = torch.tensor(stop_ids, dtype=torch.long, device=self.slot.device)
        n_steps = self.tokens.shape[1]
        for step in range(n_steps):
            token = draw(sampling.warp(self.logits))
            self.tokens[self.slot, step] = token
            if step + 1 == n_steps:
                break
            self.alive &= (token[:, None] != stop).all(dim=1)
            if (step + 1) % look_every == 0:
                n_alive = int(self.alive.sum())
                if n_alive == 0:
                    break
                if n_alive <= compact_below * len(self.alive):
                    token = token[self._drop_finished()]
            self._advance(token)
        return self.tokens

    def _advance(self, token: Tensor) -> None:
        """Runs the tokens just drawn, `(rows,)`, for the logits of those after them."""
        self._columns += 1
        self._position = self._position + 1
        mask = None if self._mask is None else self._mask[:, : self._columns]
        self.logits = self._forward(token[:, None], mask, self._position, self._cache)

    def _drop_finished(self) -> Tensor:
        """Keeps the rows that are alive; returns their index among those before."""
        rows = self.alive.nonzero().squeeze(1)
        self.slot, self.alive, self._position = self.slot[rows], self.alive[rows], self._position[rows]
        if self._mask is not None:
            self._keep(rows, self._mask[rows])
        else:
            self._select(rows, 0)
        return rows

    def _keep(self, rows: Tensor, mask: Tensor) -> None:
        """Selects rows of the cache, without the columns that are padding in all of them, or the mask if none is left."""
        n_padding = int((mask == 0).sum(dim=1).min())
        mask = mask[:, n_padding:]
        self._mask = None if bool(mask.all()) else mask
        self._select(rows, n_padding)

    def _select(self, rows: Tensor, first_column: int) -> None:
        for layer in self._cache.layers:
            layer.keep(rows, first_column)
        self._columns -= first_column


def draw(logits: Tensor) -> Tensor:
    """One token a row, from float32 logits `(rows, V)`, by inverting the distribution function.

    It takes one random number a row, where `multinomial` takes one a token of the vocabulary, and does not wait for the
    device. The sum is in float64, where there is one: in float32 a token less likely than 6e-8 could not raise it. A token of
    probability 0 is never drawn, as it does not raise it either.
    """
    precision = torch.float32 if logits.device.type == "mps" else torch.float64
    cumulative = logits.softmax(dim=-1).cumsum(dim=-1, dtype=precision)
    uniform = torch.rand_like(cumulative[:, -1:])
    return torch.searchsorted(cumulative, uniform * cumulative[:, -1:], right=True).squeeze(1)


def left_padded(prompts: Sequence[Sequence[int]], device: torch.device) -> tuple[Tensor, Tensor]:
    """Token ids and mask, 1 for a token of the prompt, both `(R, T)`."""
    width = max(map(len, prompts))
    ids = torch.tensor([[0] * (width - len(prompt)) + list(prompt) for prompt in prompts], device=device)
    mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts], device=device)
    return ids, mask
