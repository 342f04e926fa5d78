"""Every response of a small language, and what a causal language model says of each of them."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator, Sequence
from functools import cache
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

if TYPE_CHECKING:
    from transformers import Cache, PreTrainedModel

LEAK_LIMIT = 0.01
"""Mass outside the enumerated responses, of any prompt, above which the exact numbers deserve a warning."""


@cache
def word_table(n_words: int, max_words: int) -> Tensor:
    """Every response of 1 to `max_words` words: shorter first, then in the order of the word numbers.

    Returns:
        Word numbers in `[0, n_words)`, -1 after the last word, `(S, max_words)` int64, S = n + n^2 + ... + n^max_words.
    """
    rows = []
    for length in range(1, max_words + 1):
        words = torch.cartesian_prod(*[torch.arange(n_words)] * length).view(-1, length)
        rows.append(torch.nn.functional.pad(words, (0, max_words - length), value=-1))
    return torch.cat(rows)


class Enumeration(NamedTuple):
    """What a policy says of every response to X prompts.

    Args:
        logps: Log-probability, nats, of each response and its EOS, `(X, S)` float64, columns as in `word_table`,
            renormalised: each row sums to 1.
        empty: Mass that ends before the first word, `(X,)`.
        too_long: Mass of a word after the last allowed one, `(X,)`.
        foreign: Mass of tokens that are neither a word nor EOS, wherever they come, `(X,)`.
    """

    logps: Tensor
    empty: Tensor
    too_long: Tensor
    foreign: Tensor

    @property
    def leaked(self) -> Tensor:
        """Mass outside the enumerated responses before it was renormalised, `(X,)`."""
        return self.empty + self.too_long + self.foreign


class _Prefixes(NamedTuple):
    """Rows of equal length: what the model has read, and what it says of the next token.

    Args:
        first: Number of the first row among all prefixes of `length` words; the others follow.
        length: Words read.
        logps: Log-probability of the words read, `(B,)`.
        next_logps: Log-probability of the next token, `(B, vocabulary)`.
        cache: Keys and values of what was read.
    """

    first: int
    length: int
    logps: Tensor
    next_logps: Tensor
    cache: Cache


@torch.no_grad()
def enumerate_policy(
    model: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    word_ids: Sequence[int],
    eos_id: int,
    max_words: int,
    chunk: int = 2048,
) -> Enumeration:
    """Log-probability of every response of 1 to `max_words` words to every prompt, at temperature 1.

    Prefixes grow word by word over a key-value cache, depth first and at most `chunk` of them at a time, so that memory
    does not grow with their number. The model runs in evaluation mode and is left in the mode it was found in.

    Args:
        model: A causal language model of `transformers`.
        prompts: Token ids of X prompts, each at least one.
        word_ids: Token ids of the words, in the order of `word_table`.
        eos_id: The token that ends a response.
        max_words: The most words of a response.
        chunk: The most rows of one forward; peak memory is about `max_words` caches of so many rows.

    Raises:
        ValueError: Where EOS is one of the words, or a word occurs twice.

    Warns:
        UserWarning: Where more than 1 % of the mass of a prompt lies outside the enumerated responses.
    """
    if eos_id in word_ids or len(set(word_ids)) < len(word_ids):
        raise ValueError(f"The words {list(word_ids)} must be different token ids, and none of them EOS ({eos_id}).")
    words = torch.tensor(list(word_ids), device=model.device)
    was_training = model.training
    model.eval()
    try:
        rows = [_enumerate_prompt(model, prompt, words, eos_id, max_words, chunk) for prompt in prompts]
    finally:
        model.train(was_training)
    enumeration = Enumeration(*(torch.stack(column).cpu() for column in zip(*rows, strict=True)))
    worst = enumeration.leaked.max().item()
    if worst > LEAK_LIMIT:
        warnings.warn(
            f"The policy puts {worst:.1%} of the mass of a prompt outside the responses that can be enumerated; exact "
            "numbers are of the rest, renormalised. Train it for longer on demonstrations to make them exact.",
            stacklevel=2,
        )
    return enumeration


def _enumerate_prompt(
    model: PreTrainedModel, prompt: Sequence[int], words: Tensor, eos_id: int, max_words: int, chunk: int
) -> Enumeration:
    """`Enumeration` of one prompt, without its leading dimension."""
    n = len(words)
    ended = [torch.zeros(n**length, dtype=torch.float64, device=words.device) for length in range(max_words + 1)]
    too_long, foreign = torch.zeros(2, dtype=torch.float64, device=words.device)
    output = model(torch.tensor([list(prompt)], device=words.device), use_cache=True)
    start = _Prefixes(0, 0, too_long.new_zeros(1), _next_logps(output.logits), output.past_key_values)
    for prefixes in _grow(model, start, words, max_words, chunk):
        next_logps = prefixes.logps[:, None] + prefixes.next_logps
        ended[prefixes.length][prefixes.first : prefixes.first + len(next_logps)] = next_logps[:, eos_id]
        if prefixes.length == max_words:
            too_long += next_logps[:, words].exp().sum()
        next_logps[:, eos_id] = -torch.inf
        next_logps[:, words] = -torch.inf
        foreign += next_logps.exp().sum()
    return Enumeration(torch.cat(ended[1:]).log_softmax(0), ended[0][0].exp(), too_long, foreign)


def _grow(
    model: PreTrainedModel, prefixes: _Prefixes, words: Tensor, max_words: int, chunk: int
) -> Iterator[_Prefixes]:
    """Yields the prefixes, and all that begin with them, of up to `max_words` words: each once, depth first."""
    yield prefixes
    if prefixes.length == max_words:
        return
    step = max(1, chunk // len(words))
    for start in range(0, len(prefixes.logps), step):
        parents = torch.arange(start, min(start + step, len(prefixes.logps)), device=words.device)
        yield from _grow(model, _children(model, prefixes, parents, words), words, max_words, chunk)


def _children(model: PreTrainedModel, prefixes: _Prefixes, parents: Tensor, words: Tensor) -> _Prefixes:
    """Each of some prefixes, followed by each of the words."""
    cache = copy.deepcopy(prefixes.cache)
    cache.batch_select_indices(parents.repeat_interleave(len(words)))
    output = model(words.repeat(len(parents))[:, None], past_key_values=cache, use_cache=True)
    logps = prefixes.logps[parents, None] + prefixes.next_logps[parents][:, words]
    return _Prefixes(
        first=(prefixes.first + int(parents[0])) * len(words),
        length=prefixes.length + 1,
        logps=logps.flatten(),
        next_logps=_next_logps(output.logits),
        cache=output.past_key_values,
    )


def _next_logps(logits: Tensor) -> Tensor:
    """Log-probabilities after the last position: `(B, T, V)` to `(B, V)` float64."""
    return logits[:, -1].double().log_softmax(-1)
