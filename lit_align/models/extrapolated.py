"""A policy extrapolated beyond itself, away from its reference."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lit_align.losses.spa import extrapolate
from lit_align.models.logprobs import MAX_LOGITS, head_logits
from lit_align.models.sharding import inside


@torch.no_grad()
def extrapolated_logps(
    policy: Any, hidden: Tensor, reference: Any, ref_hidden: Tensor, targets: Tensor, extrapolation: float
) -> Tensor:
    """Log-probability of response tokens under the extrapolated policy of `lit_align.losses.spa`, without gradient.

    Both vocabularies are unfolded in chunks, mixed and normalised; tokens x vocabulary is never held.

    Args:
        policy: A causal language model of transformers.
        hidden: Its hidden states that predict the tokens, `(M, H)`, as `response_hidden` gives them.
        reference: Another one with the same vocabulary.
        ref_hidden: Its hidden states, `(M, H')`.
        targets: The tokens, `(M,)`.
        extrapolation: lambda.

    Returns:
        Nats, float32, `(M,)`.
    """

    def in_chunks() -> Tensor:
        # Two sets of logits and their mix are held at once.
        size = max(1, MAX_LOGITS // (3 * policy.get_output_embeddings().weight.shape[0]))
        parts = zip(torch.split(hidden, size), torch.split(ref_hidden, size), torch.split(targets, size), strict=True)
        logps = []
        for mine, theirs, tokens in parts:
            mixed = extrapolate(head_logits(policy, mine), head_logits(reference, theirs), extrapolation)
            logps.append(mixed.log_softmax(-1).gather(-1, tokens[:, None]).squeeze(-1))
        return torch.cat(logps)

    extrapolated: Tensor = inside(policy, inside, reference, in_chunks)
    return extrapolated
