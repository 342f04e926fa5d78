"""A trained policy as a table: the log-probability of every response to every prompt of the task."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lit_align.data.mini_instruct.task import MAX_WORDS, PROMPTS, WORDS
from lit_align.errors import UserError
from lit_align.exact.enumeration import Enumeration, enumerate_policy

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def enumerated_policy(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> Enumeration:
    """`lit_align.exact.enumerate_policy` on this task: `logps` are `(8, 54240)`, rows as `PROMPTS`, columns as `responses()`.

    A matter of seconds for the packaged model on one CPU core.

    Args:
        model: A causal language model; runs where its weights are.
        tokenizer: Its tokenizer, in which every word of the task is one token.

    Raises:
        UserError: Where a word is not one token.

    Warns:
        UserWarning: Where more than 1 % of a prompt's mass lies outside the 54,240 responses.
    """
    word_ids = [tokenizer(word, add_special_tokens=False).input_ids for word in WORDS]
    for word, ids in zip(WORDS, word_ids, strict=True):
        if len(ids) != 1 or ids[0] == tokenizer.unk_token_id:
            raise UserError(
                f"{word!r} is not one token of this tokenizer, so this policy's responses to mini_instruct cannot be "
                "enumerated. Train it with tokenizer: mini_instruct."
            )
    prompts = [tokenizer(prompt).input_ids for prompt in PROMPTS]
    return enumerate_policy(model, prompts, [ids[0] for ids in word_ids], tokenizer.eos_token_id, MAX_WORDS)
