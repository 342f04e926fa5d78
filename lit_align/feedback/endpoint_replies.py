"""What replies of the OpenAI API say."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Any

from lit_align.errors import UserError
from lit_align.feedback.endpoint_http import NoAnswerError
from lit_align.feedback.endpoint_ledger import Usage


def text_of(reply: Any) -> str:
    """The text of an answer, of either API; empty where the model gave none.

    Raises:
        NoAnswerError: The reply has no answer in it.
    """
    choice = _choice(reply)
    text = choice["message"].get("content") if isinstance(choice.get("message"), dict) else choice.get("text")
    if text is not None and not isinstance(text, str):
        raise NoAnswerError(f"the server sent {text!r} where a text should be")
    return text or ""


def is_finished(reply: Any) -> bool:
    """Whether the model ended the answer itself: `stop`. All else cut it: a limit on its length, a filter.

    Raises:
        NoAnswerError: The reply has no answer in it, the server broke the answer off, or does not say.
    """
    reason = _choice(reply).get("finish_reason")
    if not isinstance(reason, str) or reason == "abort":
        raise NoAnswerError(f"the server sent an answer whose finish_reason is {reason!r}")
    return reason == "stop"


def is_thoughts_only(reply: Any) -> bool:
    """Whether a model that thinks before it answers, and whose thoughts the server tells apart, gave nothing but thoughts.

    Raises:
        NoAnswerError: The reply has no answer in it.
    """
    message = _choice(reply).get("message")
    thoughts = isinstance(message, dict) and (message.get("reasoning_content") or message.get("reasoning"))
    return bool(thoughts) and not text_of(reply)


def first_tokens(reply: Any) -> list[tuple[str, float]]:
    """The likeliest first tokens of an answer with their log-probabilities, nats, in the form of either API.

    Raises:
        NoAnswerError: The reply has no answer in it, or numbers that are no log-probabilities.
        UserError: It has no log-probabilities.
    """
    choice = _choice(reply)
    try:
        logprobs = choice["logprobs"]
        if logprobs.get("content"):
            listed = [(token["token"], token["logprob"]) for token in logprobs["content"][0]["top_logprobs"]]
        else:
            listed = list(logprobs["top_logprobs"][0].items())
    except (KeyError, IndexError, TypeError, AttributeError):
        listed = []
    if not listed:
        raise UserError(
            "Endpoint: the server gives no log-probabilities with its answers. Take a server and model that do, or set "
            "read: text, which takes the label that an answer names as the whole verdict."
        )
    for token, logprob in listed:
        is_number = isinstance(logprob, int | float) and not isinstance(logprob, bool)
        if not isinstance(token, str) or not is_number or math.isnan(logprob) or logprob > 1e-3:
            raise NoAnswerError(f"the server sent {logprob!r} as the log-probability of {token!r}")
    return listed


def label_logps_of(listed: Sequence[tuple[str, float]], labels: Sequence[str]) -> list[float]:
    """Log-probability of each label: of all listed tokens that are the label, but for space around it, together."""
    chances = [math.fsum(math.exp(logprob) for token, logprob in listed if token.strip() == label) for label in labels]
    return [math.log(chance) if chance > 0 else -math.inf for chance in chances]


def label_named(text: str, labels: Sequence[str]) -> list[float]:
    """0 for the one label that occurs in a text as a word of its own, minus infinity otherwise and for the others."""
    named = [label for label in labels if re.search(rf"(?<!\w){re.escape(label)}(?!\w)", text)]
    return [0.0 if named == [label] else -math.inf for label in labels]


def usage_of(reply: Any, bound: Usage) -> Usage:
    """What a reply says that it used; the bound where it says nothing usable."""
    try:
        counts = [reply["usage"][name] for name in ("prompt_tokens", "completion_tokens")]
    except (KeyError, TypeError):
        return bound
    if any(not isinstance(count, int) or count < 0 for count in counts):
        return bound
    return Usage(1, *counts)


def _choice(reply: Any) -> dict[str, Any]:
    try:
        choice = reply["choices"][0]
    except (KeyError, IndexError, TypeError):
        choice = None
    if not isinstance(choice, dict):
        raise NoAnswerError(f"the server sent a reply without an answer: {str(reply)[:200]}")
    return choice
