"""What a rollout engine is: prompts go in as token ids, K responses a prompt come out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

from lit_align.errors import UserError
from lit_align.models.sampling import Sampling


class Response(NamedTuple):
    """One sampled response.

    Args:
        ids: Its token ids, at least one; the last is a stop token where `finish_reason` is "eos".
        finish_reason: "eos" where the policy ended the response, "length" where `max_new_tokens` cut it.
    """

    ids: list[int]
    finish_reason: Literal["eos", "length"]


@dataclass(frozen=True)
class RolloutConfig:
    """How responses are sampled.

    Args:
        max_new_tokens: A response is cut after so many tokens, its EOS among them.
        sampling: The distribution that tokens are drawn from. Training computes log-probabilities under the same one.
        max_rows: Responses decoded side by side, or those to one prompt if they are more; further prompts take the places of
            what is finished. It bounds the memory of the KV cache.
    """

    max_new_tokens: int
    sampling: Sampling = field(default_factory=Sampling)
    max_rows: int = 512

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1:
            raise UserError(f"max_new_tokens must be at least 1, got {self.max_new_tokens}.")
        if self.max_rows < 1:
            raise UserError(
                f"max_rows must be at least 1, got {self.max_rows}; it bounds the responses decoded at once."
            )


class RolloutEngine(ABC):
    """Samples responses from the policy as it is at the time of the call.

    An engine that holds its own copy of the weights brings it up to date at the start of each `sample`. Under a strategy
    with several ranks every rank calls `sample` equally often, with its own prompts; their number and lengths may differ.
    """

    @abstractmethod
    def sample(self, prompts: Sequence[Sequence[int]], k: int) -> list[list[Response]]:
        """K responses to each prompt, in the order of the prompts.

        Args:
            prompts: Token ids, at least one in each prompt.
            k: Responses a prompt, at least 1, drawn independently.

        Raises:
            ValueError: A prompt is empty, or k is below 1.
        """


def check_request(prompts: Sequence[Sequence[int]], k: int) -> None:
    """Refuses what no engine can sample.

    Raises:
        ValueError: A prompt is empty, or k is below 1.
    """
    if k < 1:
        raise ValueError(f"k must be at least 1 response a prompt, got {k}.")
    for number, prompt in enumerate(prompts):
        if len(prompt) == 0:
            raise ValueError(f"Prompt {number} has no tokens; give it at least one, a BOS for example.")


def stop_token_ids(tokenizer: Any, model: Any) -> tuple[int, ...]:
    """The tokens that end a response: the tokenizer's EOS, then those of the model's generation config.

    Chat models often name several there, of which the tokenizer knows one.

    Raises:
        UserError: Neither names any, so that every response would run to `max_new_tokens`.
    """
    named = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    more = [] if named is None else [named] if isinstance(named, int) else list(named)
    ids = dict.fromkeys(i for i in (tokenizer.eos_token_id, *more) if i is not None)
    if not ids:
        raise UserError(
            "Neither the tokenizer nor the generation config has an EOS token; set eos_token of the tokenizer."
        )
    return tuple(ids)
