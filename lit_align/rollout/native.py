"""The engine that is always there: it samples from the very module that is being trained."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from lit_align.errors import UserError
from lit_align.rollout.cache import cache_obstacle, reserved_cache
from lit_align.rollout.decoding import Decoding
from lit_align.rollout.engine import Response, RolloutConfig, RolloutEngine, check_request
from lit_align.rollout.generate import generate_tokens
from lit_align.rollout.mode import rollout_mode
from lit_align.rollout.rows import CausalForward, NotCachedError

log = logging.getLogger(__name__)

COMPACT_BELOW = 0.75
"""Finished rows leave when no more than this share of the batch is alive: that copies the cache."""

LOOK_EVERY = 8
"""Tokens between two counts of the rows alive, on devices where counting waits for all that was queued."""


class NativeEngine(RolloutEngine):
    """Samples with the policy's own weights, in its own process.

    Each prompt is run once, and its keys and values are handed to its K responses; after that a token costs one forward pass,
    one draw and a few small tensor operations. Rows that have met a stop token leave the batch, and where there are more
    responses to sample than `max_rows`, the next prompts take their places. A model whose state is not a plain cache of keys
    and values (recurrent, hybrid, a sliding window that would slide) is sampled by its own `generate` instead, and the log
    says so.

    Numbers come from the global random generator of the model's device, so that sampling resumes bit for bit where the
    generator's state is restored. Which text a prompt gets depends on the batch it is in; its distribution does not.

    Args:
        model: A causal language model of transformers, or a peft model around one.
        config: How responses are sampled.
        stop_ids: Tokens that end a response; none where every response is to have `max_new_tokens`.
    """

    def __init__(self, model: Any, config: RolloutConfig, stop_ids: Sequence[int]) -> None:
        self.model = model
        self.config = config
        self.stop_ids = tuple(stop_ids)
        self._forward = CausalForward(model)
        self._text_config = model.config.get_text_config(decoder=True)
        self._said: set[str] = set()

    def sample(self, prompts: Sequence[Sequence[int]], k: int) -> list[list[Response]]:
        """K responses to each prompt, in the order of the prompts; see `RolloutEngine.sample`.

        Raises:
            ValueError: A prompt is empty, or k is below 1.
            UserError: A prompt and `max_new_tokens` together are longer than the model's positions.
        """
        check_request(prompts, k)
        if not prompts:
            return []
        # Prompts of about one length together: there is less padding, and less to attend to.
        order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
        with rollout_mode(self.model):
            responses = self._responses(self._tokens([prompts[i] for i in order], k))
        place = {i: n for n, i in enumerate(order)}
        return [responses[place[i] * k : (place[i] + 1) * k] for i in range(len(prompts))]

    def _tokens(self, prompts: list[Sequence[int]], k: int) -> Tensor:
        """Sampled tokens of prompts in order of length, `(R * k, max_new_tokens)`."""
        config, longest = self.config, len(prompts[-1])
        self._check_positions(longest)
        obstacle = self._obstacle(longest + config.max_new_tokens)
        if not obstacle:
            new_cache = partial(reserved_cache, self._text_config, config.max_new_tokens)
            try:
                decoding = Decoding(self._forward, new_cache, prompts, k, config.max_new_tokens, config.max_rows)
            except NotCachedError:
                obstacle = "it did not fill a cache of keys and values"
            else:
                look_every = 1 if next(self.model.parameters()).device.type == "cpu" else LOOK_EVERY
                return decoding.run(config.sampling, self.stop_ids, look_every, COMPACT_BELOW)
        if obstacle not in self._said:
            self._said.add(obstacle)
            log.warning("%s is sampled by its own generate, which is slower: %s.", type(self.model).__name__, obstacle)
        size = max(1, config.max_rows // k)
        return torch.cat(
            [
                generate_tokens(self.model, alike, k, config.max_new_tokens, config.sampling, self.stop_ids)
                for _, same in itertools.groupby(prompts, key=len)
                for alike in _cut(list(same), size)
            ]
        )

    def _check_positions(self, longest: int) -> None:
        limit = getattr(self._text_config, "max_position_embeddings", None)
        if limit is not None and longest + self.config.max_new_tokens > limit:
            raise UserError(
                f"A prompt of {longest} tokens and max_new_tokens {self.config.max_new_tokens} exceed the model's {limit} "
                "positions; lower max_new_tokens, or the length that prompts are cut to."
            )

    def _obstacle(self, columns: int) -> str:
        if not self._forward.takes_cache:
            return "its forward pass takes no past_key_values"
        if getattr(getattr(self.model, "active_peft_config", None), "is_prompt_learning", False):
            return "its adapter puts learned tokens before the prompt"
        return cache_obstacle(self._text_config, columns)

    def _responses(self, tokens: Tensor) -> list[Response]:
        """Cuts each row of tokens after its first stop token."""
        stop = torch.tensor(self.stop_ids, dtype=torch.long, device=tokens.device)
        is_stop = (tokens[:, :, None] == stop).any(dim=2)
        finished = is_stop.any(dim=1)
        lengths = torch.where(finished, is_stop.int().argmax(dim=1) + 1, tokens.shape[1])
        rows = zip(tokens.tolist(), lengths.tolist(), finished.tolist(), strict=True)
        return [Response(ids[:length], "eos" if eos else "length") for ids, length, eos in rows]


def _cut(prompts: list[Sequence[int]], size: int) -> list[list[Sequence[int]]]:
    return [prompts[start : start + size] for start in range(0, len(prompts), size)]
