"""From prompts as text to answers as text, with any causal language model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lit_align.data.prompts import encoded_prompts
from lit_align.feedback.source import Answer, decoded_answers
from lit_align.groups import Text
from lit_align.rollout import NativeEngine, RolloutConfig, stop_token_ids


def sample_answers(
    model: Any, tokenizer: Any, prompts: Sequence[Text], k: int, config: RolloutConfig, max_prompt_length: int = 512
) -> list[Answer]:
    """Samples K responses to each prompt: those to the first one, then those to the second, and so on.

    It draws from the global random generator of the model's device and leaves the model in the mode it was in.

    Args:
        model: A causal language model of transformers, or a peft model around one.
        tokenizer: Its tokenizer, with a chat template if there are chats among the prompts.
        prompts: Plain text, or chat turns up to the user's last one.
        k: Responses a prompt, at least 1.
        config: How they are sampled.
        max_prompt_length: Tokens of a prompt; a longer one loses its beginning.

    Raises:
        UserError: A prompt is empty, the template refuses it, or it and `max_new_tokens` exceed the model's positions.
    """
    ids = encoded_prompts(tokenizer, prompts, max_prompt_length)
    engine = NativeEngine(model, config, stop_token_ids(tokenizer, model))
    return decoded_answers(tokenizer, prompts, ids, engine.sample(ids, k))
