"""From a batch to what a model says of its responses: log-probabilities of their tokens, or rewards of the whole."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from lit_align.errors import UserError
from lit_align.groups import GroupBatch
from lit_align.models.sampling import Sampling
from lit_align.models.sharding import inside
from lit_align.models.tree_mask import trunk_states

MAX_LOGITS = 2**24
"""Logits held at once: 64 MiB in float32. More are computed in chunks, and once more in the backward pass."""


def response_logps(model: Any, batch: GroupBatch, sampling: Sampling | None = None) -> Tensor:
    """Log-probability of every response token given all before it.

    The trunk runs over the whole input; the vocabulary is only unfolded where a response token is predicted, in chunks, and
    log-softmax is always float32: from bf16 logits it would be off by more than a DPO margin.

    Args:
        model: A causal language model of transformers (or a peft model around one).
        batch: N responses with M tokens.
        sampling: The distribution whose log-probabilities are wanted; the model's own if None.

    Returns:
        Nats, float32, `(M,)`.
    """
    return token_logps(model, response_hidden(model, batch), batch.targets, sampling or Sampling())


class TokenStats(NamedTuple):
    """What a policy says at each response token.

    Args:
        logps: Log-probability of the token, nats, `(M,)`.
        entropy: Of the distribution it was drawn from, nats, `(M,)`.
    """

    logps: Tensor
    entropy: Tensor


def token_logps(model: Any, hidden: Tensor, targets: Tensor, sampling: Sampling) -> Tensor:
    """Log-probability of `targets (M,)` from the hidden states `(M, H)` that predict them, nats, float32, `(M,)`."""
    return torch.cat(inside(model, _in_chunks, _logps, _unwrap(model), hidden, targets, sampling))


def token_stats(
    model: Any, hidden: Tensor, targets: Tensor, sampling: Sampling, *, entropy_is_trained: bool = False
) -> TokenStats:
    """As `token_logps`, with the entropy from the same logits, which has a gradient where it `entropy_is_trained`."""
    compute = _stats_with_gradient if entropy_is_trained else _stats
    chunks = inside(model, _in_chunks, compute, _unwrap(model), hidden, targets, sampling)
    logps, entropies = zip(*chunks, strict=True)
    return TokenStats(torch.cat(logps), torch.cat(entropies))


def response_hidden(model: Any, batch: GroupBatch) -> Tensor:
    """The trunk's last hidden state where each response token is predicted, `(M, H)`."""
    return trunk_hidden(model, batch).index_select(0, batch.predict_index)


def trunk_hidden(model: Any, batch: GroupBatch) -> Tensor:
    """The trunk's last hidden states at every position, `(R * T, H)`."""
    return inside(model, _trunk_hidden, model, batch)


def _trunk_hidden(model: Any, batch: GroupBatch) -> Tensor:
    return trunk_states(trunk(model), batch.model_inputs)


def response_rewards(model: Any, batch: GroupBatch) -> Tensor:
    """The scalar head of a reward model at the last token of each response, float32, `(N,)`."""
    return inside(model, _scores, model, batch, batch.last_index)


def response_values(critic: Any, batch: GroupBatch) -> Tensor:
    """What a separate critic, built like a reward model, expects before each response token: float32, `(M,)`."""
    return inside(critic, _scores, critic, batch, batch.predict_index)


def _scores(model: Any, batch: GroupBatch, index: Tensor) -> Tensor:
    """The scalar head at these positions of the input, float32."""
    hidden = _trunk_hidden(model, batch).index_select(0, index)
    scores: Tensor = _unwrap(model).score(hidden).squeeze(-1)
    return scores.float()


def trunk(model: Any) -> nn.Module:
    """The part of a model below its head."""
    module: nn.Module = _unwrap(model).base_model
    return module


def head_logits(model: Any, hidden: Tensor) -> Tensor:
    """Logits from hidden states, `(..., H)` to `(..., V)`, with whatever the architecture does to them after its head."""
    causal = _unwrap(model)
    config = causal.config.get_text_config()
    logits: Tensor = causal.get_output_embeddings()(hidden)
    if (factor := getattr(config, "logit_scale", None)) is not None:  # Cohere
        logits = logits * factor
    if (divisor := getattr(config, "logits_scaling", None)) is not None:  # Granite
        logits = logits / divisor
    if (cap := getattr(config, "final_logit_softcapping", None)) is not None:  # Gemma
        logits = cap * torch.tanh(logits / cap)
    return logits


def check_head(model: Any) -> None:
    """Refuses a model whose logits are not what `head_logits` makes of its hidden states.

    Raises:
        UserError: The architecture does something to its logits that is not known here, so that every log-probability would
            silently be wrong.
    """
    causal = _unwrap(model)
    weight = causal.get_output_embeddings().weight
    ids = torch.arange(4, device=weight.device)[None] % weight.shape[0]
    was_training = model.training
    model.eval()
    with torch.no_grad():
        expected = model(input_ids=ids).logits.float()
        actual = head_logits(model, trunk(model)(input_ids=ids).last_hidden_state).float()
    model.train(was_training)
    if not torch.allclose(expected, actual, rtol=1e-2, atol=1e-2 * float(expected.abs().max())):
        raise UserError(
            f"{type(causal).__name__} changes its logits after the output head in a way lit_align does not know; "
            "see lit_align.models.logprobs.head_logits, which is the one place to teach it."
        )


def _in_chunks(
    compute: Callable[..., Any], causal: Any, hidden: Tensor, targets: Tensor, sampling: Sampling
) -> list[Any]:
    """`compute` on as many tokens at once as `MAX_LOGITS` allows; where that is not all, logits are recomputed backward."""
    size = max(1, MAX_LOGITS // causal.get_output_embeddings().weight.shape[0])
    if len(hidden) <= size:
        return [compute(causal, hidden, targets, sampling)]
    chunks = zip(torch.split(hidden, size), torch.split(targets, size), strict=True)
    return [
        checkpoint(compute, causal, *chunk, sampling, use_reentrant=False, preserve_rng_state=False) for chunk in chunks
    ]


def _log_probabilities(causal: Any, hidden: Tensor, targets: Tensor, sampling: Sampling) -> Tensor:
    return sampling.warp(head_logits(causal, hidden), keep=targets).log_softmax(-1)


def _logps(causal: Any, hidden: Tensor, targets: Tensor, sampling: Sampling) -> Tensor:
    return _log_probabilities(causal, hidden, targets, sampling).gather(-1, targets[:, None]).squeeze(-1)


def _stats(causal: Any, hidden: Tensor, targets: Tensor, sampling: Sampling) -> TokenStats:
    every = _log_probabilities(causal, hidden, targets, sampling)
    with torch.no_grad():
        entropy = _entropy(every)
    return TokenStats(every.gather(-1, targets[:, None]).squeeze(-1), entropy)


def _stats_with_gradient(causal: Any, hidden: Tensor, targets: Tensor, sampling: Sampling) -> TokenStats:
    every = _log_probabilities(causal, hidden, targets, sampling)
    return TokenStats(every.gather(-1, targets[:, None]).squeeze(-1), _entropy(every))


def _entropy(log_probabilities: Tensor) -> Tensor:
    # A token that may not be drawn has log-probability minus infinity, and 0 * -inf is not 0.
    finite = log_probabilities.masked_fill(log_probabilities.isinf(), 0)
    return -(log_probabilities.exp() * finite).sum(-1)


def _unwrap(model: Any) -> Any:
    """The transformers model inside a peft model; itself otherwise."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model
