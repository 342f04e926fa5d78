"""Models behind a server of the OpenAI API answer prompts: vLLM, SGLang, llama.cpp, `transformers serve`, a paid service."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lit_align.annotation.candidates import NoTokens
from lit_align.annotation.records import Row
from lit_align.annotation.samplers import Plan, Sampler, check_positive
from lit_align.errors import UserError
from lit_align.feedback import Answer, Budget
from lit_align.feedback.endpoint_asking import NOTHING, Asking, Request
from lit_align.feedback.endpoint_http import RefusedError, Server
from lit_align.feedback.endpoint_ledger import Ledger, Usage
from lit_align.feedback.endpoint_replies import is_finished, is_thoughts_only, text_of, usage_of
from lit_align.groups import Text

log = logging.getLogger(__name__)

RETRIES = 6
"""How often a request is sent again: for a good half minute at least."""

ROWS_TO_COMPARE = 8
"""Prompts after which it is said that all responses to each of them are the same."""

OURS = {"model", "messages", "prompt", "n", "stream"}
"""Fields of a request that nobody else sets: a reply is one whole response to one prompt."""

OPTIONS = {
    "temperature": "--temperature",
    "top_p": "--top_p",
    "top_k": "--top_k",
    "max_tokens": "--max_new_tokens",
    "seed": "--seed",
}
"""Fields that an option of the command sets; a server that knows one by another name is told so by null and that name."""


class ServerSampler(Sampler):
    """Asks for one response at a time, each with a seed of its own, several at once.

    Chats go to `/chat/completions`, where the server applies the model's chat template, plain text to `/completions`. Not K
    responses a request: `transformers serve` ignores `n`, and what one seed means for `n` responses differs from server to
    server. Those that cache prefixes, as vLLM and SGLang do, read the prompt once all the same.

    Each response is on the disk before it is used, so whatever stops this loses none.

    Args:
        models: Their names there, each once.
        plan: How they answer.
        server: Where they are.
        concurrency: Requests under way at once.
        extra: Fields added to every request; null takes one away.
        kept: The file for responses that are not yet part of a whole row.
    """

    def __init__(
        self,
        models: Sequence[str],
        plan: Plan,
        server: Server,
        concurrency: int,
        extra: Mapping[str, Any],
        kept: Path,
    ) -> None:
        super().__init__(models, plan)
        check_positive(concurrency=concurrency)
        if not server.timeout > 0:
            raise UserError(f"timeout must be above 0 seconds, got {server.timeout}.")
        if ours := OURS & extra.keys():
            raise UserError(f"extra must leave {', '.join(sorted(ours))} alone.")
        for field in OPTIONS.keys() & {name for name, value in extra.items() if value is not None}:
            if field != "top_k" or plan.rollout.sampling.top_k:  # 0 is not sent
                raise UserError(f"extra: {field} is {OPTIONS[field]}, which would have no effect beside it: set that.")
        self.server = server
        self.concurrency = concurrency
        self.extra = dict(extra)
        self.kept = kept
        self.beside = (kept,)

    def answers(self, prompts: Sequence[Text], there: int) -> Iterator[tuple[list[list[Answer]], int]]:
        """See `Sampler.answers`: a row as soon as it and all before it are whole."""
        each = len(self.names) * self.plan.k
        waiting: dict[int, dict[int, Any]] = {}
        look = _Look(self.plan, min(ROWS_TO_COMPARE, len(prompts) - there))
        with self._ledger() as ledger:
            asking = Asking(self.server, ledger, _check, RETRIES)
            try:
                for key, reply in asking.arriving(self._requests(prompts, there), self.concurrency):
                    row, place = map(int, key.split("/"))
                    waiting.setdefault(row, {})[place] = reply
                    while len(waiting.get(there, ())) == each:
                        replies = [reply for _, reply in sorted(waiting.pop(there).items())]
                        answers = [_answer(prompts[there], reply) for reply in replies]
                        look.at(replies, answers)
                        there += 1
                        yield [answers], sum(usage_of(reply, NOTHING).output_tokens for reply in replies)
            except RefusedError as refusal:
                raise UserError(self._advice(refusal)) from None

    def settings(self) -> Row:
        """See `Sampler.settings`. The address is not among them: a server may come back elsewhere."""
        return {
            "models": [{"path": name} for name in self.names],
            "server": "one request a response, each with its own seed",
            "extra": self.extra,
            **self.plan.settings(),
        }

    @contextmanager
    def _ledger(self) -> Iterator[Ledger]:
        """Where responses are kept. Where there are none, because the first request has failed, it leaves nothing behind."""
        ledger = Ledger(str(self.kept), "responses", Budget(), None)
        try:
            yield ledger
        finally:
            answered = ledger.spent().requests
            ledger.close()
            if not answered:
                self.kept.unlink()

    def _requests(self, prompts: Sequence[Text], there: int) -> Iterator[Request]:
        for row in range(there, len(prompts)):
            for number, name in enumerate(self.names):
                for sample in range(self.plan.k):
                    mixed = hashlib.sha256(f"{self.plan.seed}/{row}/{number}/{sample}".encode()).digest()
                    # 31 bits: what every server takes.
                    path, body = self._request(name, prompts[row], int.from_bytes(mixed[:4], "big") >> 1)
                    key = f"{row}/{number * self.plan.k + sample}"
                    yield Request(key, path, body, Usage(1, len(body), self.plan.rollout.max_new_tokens))

    def _request(self, name: str, prompt: Text, seed: int) -> tuple[str, bytes]:
        """Path and body of one request."""
        sampling = self.plan.rollout.sampling
        body: dict[str, Any] = {
            "model": name,
            "max_tokens": self.plan.rollout.max_new_tokens,
            # Greedy decoding by the name that all servers know; top_k is an extension.
            "temperature": 0 if sampling.top_k == 1 else sampling.temperature,
            "top_p": sampling.top_p,
            "seed": seed,
        }
        if sampling.top_k > 1:
            body["top_k"] = sampling.top_k
        path, text = ("/completions", "prompt") if isinstance(prompt, str) else ("/chat/completions", "messages")
        whole = {name: value for name, value in (body | {text: prompt} | self.extra).items() if value is not None}
        return path, json.dumps(whole).encode()

    def _advice(self, refusal: RefusedError) -> str:
        prompt = f"Prompt {int(refusal.key.split('/')[0]) + 1}: {refusal}"
        if self.plan.rollout.sampling.top_k > 1 and "top_k" in str(refusal):
            return f"{prompt} top_k is no part of the OpenAI API: leave it out for this server."
        return prompt


class _Look:
    """Says early what would make the whole file useless.

    Args:
        plan: What was asked for.
        rows: How many rows are looked at before it is said that their responses are alike.
    """

    def __init__(self, plan: Plan, rows: int) -> None:
        self._k = plan.k
        self._rows_to_compare = rows if plan.k > 1 and plan.rollout.sampling.top_k != 1 else 0
        self._alike = 0
        self._told_of_thoughts = False

    def at(self, replies: Sequence[Any], answers: Sequence[Answer]) -> None:
        """One row."""
        if not self._told_of_thoughts and any(map(is_thoughts_only, replies)):
            self._told_of_thoughts = True
            log.warning(
                "There are responses that are thoughts and nothing else; they are written as empty ones. Give the model more "
                "--max_new_tokens, or have it answer at once: --extra '{chat_template_kwargs: {enable_thinking: false}}' with "
                "vLLM and SGLang."
            )
        texts = [answer.response for answer in answers]
        if all(len(set(texts[start : start + self._k])) == 1 for start in range(0, len(texts), self._k)):
            self._alike += 1
            if self._alike == self._rows_to_compare:
                log.warning(
                    "All %d responses to each of the first %d prompts are the same. The server seems to decode greedily "
                    "whatever the temperature: `transformers serve` does so unless do_sample is true in the model's "
                    "generation_config.json.",
                    self._k,
                    self._alike,
                )
        else:
            self._rows_to_compare = 0


def _answer(prompt: Text, reply: Any) -> Answer:
    return Answer(prompt, text_of(reply), NoTokens(), NoTokens(), is_finished(reply))


def _check(reply: Any) -> None:
    """Raises NoAnswerError where a reply is worth another try."""
    text_of(reply)
    is_finished(reply)
