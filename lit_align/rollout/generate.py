"""Sampling by a model's own `generate`, where its state is not a plain cache of keys and values."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList

from lit_align.models.sampling import Sampling


def generate_tokens(
    model: Any,
    prompts: Sequence[Sequence[int]],
    k: int,
    max_new_tokens: int,
    sampling: Sampling,
    stop_ids: Sequence[int],
) -> Tensor:
    """K responses to each of R prompts of one length: a recurrent model would take padding for text.

    The distribution is made by `Sampling.warp` alone; what the model's own generation config says of sampling is ignored, as
    log-probabilities in training know nothing of it.

    Returns:
        Sampled tokens, `(R * k, max_new_tokens)`. What follows a row's first stop token means nothing.
    """
    ids = torch.tensor([list(prompt) for prompt in prompts], device=next(model.parameters()).device)
    config = GenerationConfig(
        max_new_tokens=max_new_tokens,
        num_return_sequences=k,
        do_sample=True,
        top_k=0,
        eos_token_id=list(stop_ids) or None,
        pad_token_id=stop_ids[0] if stop_ids else 0,
    )
    with _plain_generation(model):
        output: Tensor = model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            generation_config=config,
            logits_processor=LogitsProcessorList([_Warp(sampling)]),
        )
    tokens = output[:, ids.shape[1] :]
    return torch.nn.functional.pad(tokens, (0, max_new_tokens - tokens.shape[1]))


class _Warp(LogitsProcessor):  # type: ignore[misc]
    def __init__(self, sampling: Sampling) -> None:
        self._sampling = sampling

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        return self._sampling.warp(scores)


@contextmanager
def _plain_generation(model: Any) -> Iterator[None]:
    """Hides the model's generation config, from which `generate` fills whatever it is not told."""
    causal = model.get_base_model() if hasattr(model, "get_base_model") else model
    own = causal.generation_config
    causal.generation_config = GenerationConfig()
    try:
        yield
    finally:
        causal.generation_config = own
