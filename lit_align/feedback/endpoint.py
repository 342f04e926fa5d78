"""A language model behind a server that speaks the OpenAI API: vLLM, SGLang, llama.cpp, a paid service."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

import torch

from lit_align.errors import UserError
from lit_align.feedback.endpoint_asking import Asking, Request
from lit_align.feedback.endpoint_http import Server
from lit_align.feedback.endpoint_ledger import Budget, Ledger, Usage
from lit_align.feedback.endpoint_replies import first_tokens, label_logps_of, label_named, text_of
from lit_align.feedback.text_model import Reading, TextModel, as_plain_text, with_progress
from lit_align.groups import Message

LABEL_TOKENS = 16
"""Tokens of an answer that a label is looked for in, where the text is read."""

T = TypeVar("T")


@dataclass(frozen=True)
class Endpoint(TextModel):
    """A model behind a server with `/chat/completions` or `/completions` of the OpenAI API.

    Every answer is kept in a SQLite file before it is used, under a hash of address, model and request: what was answered once
    is not asked again, by this run or another one. What fails in passing (no connection, HTTP 429 or 5xx, a reply that is
    none) is tried again after a random wait that doubles, or as long as the server asks for.

    Args:
        url: The API's address without the path of a call, such as `http://localhost:8000/v1`.
        model: The model's name there.
        api: `chat` for chat models, `completions` for models that only continue text.
        api_key_env: The environment variable that holds the API key, if the server wants one. The key itself is never logged,
            saved or shown.
        read: `logprobs` reads the probabilities of the labels off the first token of the answer, so labels have to be single
            tokens for the server. `text` reads which label the answer names, all or nothing, for servers without logprobs.
        top_logprobs: How many of the likeliest tokens the server lists; a label that is not among them counts as impossible.
            20 is as many as most servers allow, some allow 5.
        cache: The file that answers are kept in. Runs and processes of one machine may share one; SQLite cannot share a file
            between machines, so on several nodes name one on a disk of each node.
        timeout: Seconds that a reply may take.
        retries: How often a request is sent again.
        concurrency: Requests under way at once.
        requests_per_minute: The most that is sent in a minute, by all processes that share the cache file. No limit if None.
        budget: What may be spent.
        extra: Fields added to every request, such as `{chat_template_kwargs: {enable_thinking: false}}`; null takes one away.
    """

    url: str
    model: str
    api: Literal["chat", "completions"] = "chat"
    api_key_env: str | None = None
    read: Literal["logprobs", "text"] = "logprobs"
    top_logprobs: int = 20
    cache: str = "runs/.endpoint.sqlite"
    timeout: float = 120.0
    retries: int = 6
    concurrency: int = 8
    requests_per_minute: float | None = None
    budget: Budget = field(default_factory=Budget)
    extra: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._server()
        for name, least in (("top_logprobs", 2), ("retries", 0), ("concurrency", 1)):
            if getattr(self, name) < least:
                raise UserError(f"Endpoint: {name} must be at least {least}, got {getattr(self, name)}.")
        if not self.timeout > 0 or (self.requests_per_minute is not None and not self.requests_per_minute > 0):
            raise UserError(
                f"Endpoint: timeout ({self.timeout}) and requests_per_minute ({self.requests_per_minute}) must be above 0."
            )
        if ours := {"model", "messages", "prompt"} & self.extra.keys():
            raise UserError(f"Endpoint: extra must leave {', '.join(sorted(ours))} alone.")
        if self.budget.max_cost is not None and self._most_tokens({"max_tokens": 1, **self.extra}) is None:
            raise UserError(
                "Endpoint: budget.max_cost needs a limit on the length of answers, and extra takes max_tokens away. Give "
                "max_completion_tokens in its place."
            )

    def check_labels(self, labels: Sequence[str]) -> None:
        """The first token has to tell labels apart."""
        pairs = ((short, long) for short in labels for long in labels if short != long and long.startswith(short))
        if self.read == "logprobs" and (pair := next(pairs, None)):
            raise UserError(
                f"Endpoint reads the first token of an answer, and {pair[0]!r} may be that of {pair[1]!r} too. Choose labels "
                "none of which begins another (ratings from 1 to 9, say), or set read: text."
            )

    def label_logps(self, questions: Sequence[list[Message]], labels: Sequence[str]) -> Reading:
        """Log-probabilities of the labels as the first token of the answer, with or without space around them.

        With `read: text` 0 for the label that the answer names, and minus infinity for the others.

        Raises:
            UserError: The server refuses, gives no log-probabilities, or cannot be reached; or the budget is used up.
        """
        if self.read == "text":
            said = self._ask([self._body(question, LABEL_TOKENS) for question in questions], text_of)
            read = [label_named(text, labels) for text in said]
        else:
            # At temperature 1, because some servers give the log-probabilities after dividing by it.
            wanted = {"temperature": 1, **self._wants_logprobs()}
            tops = self._ask([self._body(question, 1) | wanted for question in questions], first_tokens)
            said = [" | ".join(token for token, _ in top[:5]) for top in tops]
            read = [label_logps_of(top, labels) for top in tops]
        logps = torch.tensor(read, dtype=torch.float32).view(len(questions), len(labels))
        unread = logps.isinf().all(dim=1).tolist()
        return Reading(logps, [text if none else "" for text, none in zip(said, unread, strict=True)])

    def complete(self, questions: Sequence[list[Message]], max_tokens: int) -> list[str]:
        """Answers at temperature 0.

        Raises:
            UserError: The server refuses or cannot be reached, or the budget is used up.
        """
        return self._ask([self._body(question, max_tokens) for question in questions], text_of)

    def _server(self) -> Server:
        return Server(self.url, self.api_key_env, self.timeout)

    def _body(self, question: list[Message], max_tokens: int) -> dict[str, Any]:
        text = {"messages": question} if self.api == "chat" else {"prompt": as_plain_text(question)}
        return {"model": self.model, **text, "max_tokens": max_tokens, "temperature": 0}

    def _wants_logprobs(self) -> dict[str, Any]:
        if self.api == "chat":
            return {"logprobs": True, "top_logprobs": self.top_logprobs}
        return {"logprobs": self.top_logprobs}

    @staticmethod
    def _most_tokens(body: dict[str, Any]) -> int | None:
        """Tokens that an answer has at most, or None where there is no limit."""
        limits = [body.get(name) for name in ("max_tokens", "max_completion_tokens")]
        return max((limit for limit in limits if limit is not None), default=None)

    def _ask(self, bodies: Sequence[dict[str, Any]], read: Callable[[Any], T]) -> list[T]:
        """What `read` makes of the reply to each request. Equal requests are sent once."""
        path = "/chat/completions" if self.api == "chat" else "/completions"
        server = self._server()
        sent: dict[str, Request] = {}
        keys = []
        for body in bodies:
            whole = {name: value for name, value in (body | self.extra).items() if value is not None}
            raw = json.dumps(whole, sort_keys=True).encode()
            key = hashlib.sha256(f"{server.url}{path} ".encode() + raw).hexdigest()
            keys.append(key)
            # A token is at least a byte, and the fields around the text are longer than what a chat template adds to it.
            sent[key] = Request(key, path, raw, Usage(1, len(raw), self._most_tokens(whole) or 0))
        with closing(Ledger(self.cache, f"{server.url} {self.model}", self.budget, self.requests_per_minute)) as ledger:
            arriving = Asking(server, ledger, read, self.retries).arriving(sent.values(), self.concurrency)
            replies = dict(with_progress(arriving, len(sent), f"Answers from {server.url}"))
        return [read(replies[key]) for key in keys]
