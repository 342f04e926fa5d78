"""The inner loop of sampling: rows of one batch, one token at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor
from transformers.cache_utils import Cache

from lit_align.models.sampling import Sampling
from lit_align.rollout.rows import CausalForward, Rows

ALIKE = 64
"""Prompts that differ by more tokens than this, and by more than the shorter of them has, are not padded to one length."""


class Decoding:
    """Samples responses to more prompts than there is room for: those that wait take the places of rows that are finished.

    Args:
        forward: The model.
        new_cache: Makes an empty cache.
        prompts: R prompts as token ids, in order of length; each is run once.
        k: Rows made of each prompt.
        max_new_tokens: Tokens of a row, at most.
        max_rows: Rows at once, or k if that is more.

    Raises:
        NotCachedError: The model does not fill a cache.
    """

    def __init__(
        self,
        forward: CausalForward,
        new_cache: Callable[[], Cache],
        prompts: Sequence[Sequence[int]],
        k: int,
        max_new_tokens: int,
        max_rows: int,
    ) -> None:
        self._forward, self._new_cache, self._k = forward, new_cache, k
        self._prompts, self._n_begun = prompts, 0
        self._max_new_tokens, self._max_rows = max_new_tokens, max(max_rows, k)
        self._rows = self._begun(self._max_rows)

    def run(self, sampling: Sampling, stop_ids: Sequence[int], look_every: int, compact_below: float) -> Tensor:
        """Samples until every row of every prompt has met a stop token or is full.

        Args:
            sampling: The distribution to draw from.
            stop_ids: Tokens that finish a row.
            look_every: Tokens between two counts of the rows alive, each of which waits for the device.
            compact_below: Finished rows leave when no more than this share is alive.

        Returns:
            Sampled tokens, `(R * k, max_new_tokens)`. What follows a row's first stop token means nothing.
        """
        rows, limit = self._rows, self._max_new_tokens
        stop = torch.tensor(stop_ids, dtype=torch.long, device=rows.slot.device)
        # The last column is for what full rows go on to say while others are not.
        tokens = torch.zeros(len(self._prompts) * self._k, limit + 1, dtype=torch.long, device=stop.device)
        step, all_full_at = 0, limit
        while True:
            token = draw(sampling.warp(rows.logits))
            tokens[rows.slot, rows.length.clamp(max=limit)] = token
            rows.length += 1
            rows.alive &= (token[:, None] != stop).all(dim=1) & (rows.length < limit)
            step += 1
            n_alive = len(rows)
            if step == all_full_at:  # which needs no look
                n_alive = 0
            elif step % look_every == 0:
                n_alive = int(rows.alive.sum())
            if n_alive > compact_below * len(rows):
                rows.advance(token)
                continue
            waiting = self._n_begun < len(self._prompts)
            if n_alive:
                rows.advance(token[rows.drop_finished()])
                if waiting and self._max_rows - n_alive >= self._k:
                    rows.join(self._begun(self._max_rows - n_alive))
                    all_full_at = step + limit
            elif waiting:
                rows, all_full_at = self._begun(self._max_rows), step + limit
            else:
                return tokens[:, :limit]

    def _begun(self, room: int) -> Rows:
        """Runs as many of the prompts that wait as there is room for."""
        waiting = self._prompts[self._n_begun : self._n_begun + room // self._k]
        begun: Rows | None = None
        for prompts in alike(waiting):
            first_slot = self._n_begun * self._k
            rows = Rows(self._forward, self._new_cache(), prompts, self._k, first_slot, self._max_new_tokens)
            self._n_begun += len(prompts)
            if begun is None:
                begun = rows
            else:
                begun.join(rows)
        assert begun is not None
        return begun


def alike(prompts: Sequence[Sequence[int]]) -> Iterator[Sequence[Sequence[int]]]:
    """Prompts in order of length, cut where they grow much longer: a batch of all would be mostly padding."""
    start = 0
    while start < len(prompts):
        shortest = len(prompts[start])
        longest = max(2 * shortest, shortest + ALIKE)
        n = sum(len(prompt) <= longest for prompt in prompts[start:])
        yield prompts[start : start + n]
        start += n


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
