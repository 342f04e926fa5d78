"""The arithmetic that training a policy on a batch takes, from the batch and the model's shape."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lit_align.groups import GroupBatch


class Tokens(NamedTuple):
    """What a forward pass over a batch handles.

    Args:
        trunk: Tokens that are no padding.
        attended: Pairs of a token and one that it attends to, itself included.
        predicted: Tokens for which the vocabulary is unfolded.
    """

    trunk: int
    attended: int
    predicted: int

    def __add__(self, other: Tokens) -> Tokens:  # type: ignore[override]
        """Both together."""
        return Tokens(*(a + b for a, b in zip(self, other, strict=True)))


NONE = Tokens(0, 0, 0)


def batch_tokens(batch: Any) -> Tokens:
    """The tokens of a batch: a `GroupBatch`, something with such batches as attributes, or a mapping with `input_ids`.

    Nothing for fillers, and for a batch of any other kind.
    """
    if isinstance(batch, Mapping):
        ids, mask = batch.get("input_ids"), batch.get("attention_mask")
        if not isinstance(ids, Tensor):
            return NONE
        lengths = (torch.ones_like(ids) if mask is None else mask).long().sum(-1)
        return Tokens(int(lengths.sum()), int((lengths * (lengths + 1)).sum()) // 2, int(lengths.sum()))
    if getattr(batch, "is_filler", False):
        return NONE
    own = _of_group_batch(batch) if isinstance(batch, GroupBatch) else NONE
    inner = (value for value in getattr(batch, "__dict__", {}).values() if isinstance(value, GroupBatch))
    return sum((batch_tokens(part) for part in inner), own)


def _of_group_batch(batch: GroupBatch) -> Tokens:
    """A token at position p of its sequence attends to p + 1, in either layout."""
    inputs = batch.model_inputs
    positions = inputs["position_ids"]
    if "attention_mask" in inputs:
        real = inputs["attention_mask"].bool()
    else:  # in the shared layout a column that nobody has filled sees itself alone
        columns = torch.arange(1, positions.shape[1] + 1, device=positions.device)
        real = (positions > 0) | (inputs["visible_until"] != columns)
    return Tokens(int(real.sum()), int(((positions + 1) * real).sum()), len(batch.targets))


def training_flops(policy: Any, tokens: Tokens) -> float:
    """FLOP of one forward and one backward pass of a policy; what it recomputes to save memory is not counted.

    A weight costs 2 FLOP a token forward, 2 for the gradient of its input and, if it is trained, 2 for its own: 6 N in all
    (Kaplan et al. 2020, 2001.08361, section 2.1). Attention costs 12 d for each pair of tokens in each layer, with d the
    width of all heads together (Chowdhery et al. 2022, 2204.02311, appendix B, which also counts the pairs that a causal mask
    hides). The output head runs where a response token is predicted, and looking up an embedding costs nothing.

    Args:
        policy: A causal language model of transformers, or a peft model around one.
        tokens: What it is run on.
    """
    model = policy.get_base_model() if hasattr(policy, "get_base_model") else policy
    config = model.config.get_text_config()
    heads = config.num_attention_heads
    width = heads * (getattr(config, "head_dim", None) or config.hidden_size // heads)
    ends = {id(part.weight) for part in (model.get_input_embeddings(), model.get_output_embeddings())}
    trunk = sum(p.numel() * _passes(p) for p in policy.parameters() if id(p) not in ends)
    head = model.get_output_embeddings().weight
    return float(
        trunk * tokens.trunk
        + head.numel() * _passes(head) * tokens.predicted
        + 12 * config.num_hidden_layers * width * tokens.attended
    )


def _passes(parameter: Tensor) -> int:
    """FLOP of a weight for each token."""
    return 6 if parameter.requires_grad else 4
