"""Many requests to one server at once: threads, waits, retries, and what is kept of the answers."""

from __future__ import annotations

import json
import logging
import random
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import suppress
from typing import Any

from lit_align.errors import UserError
from lit_align.feedback.endpoint_http import NoAnswerError, Server
from lit_align.feedback.endpoint_ledger import Ledger, Usage
from lit_align.feedback.endpoint_replies import usage_of
from lit_align.feedback.text_model import with_progress

log = logging.getLogger(__name__)

FIRST_WAIT, LONGEST_WAIT = 1.0, 60.0
"""Seconds before the second try, doubled at every further one, and the most they become."""

NOTHING = Usage(0, 0, 0)

WORTH_A_WARNING = 10.0
"""Seconds of waiting that a person is told about."""


class StoppedError(Exception):
    """Another request has failed for good, so this one is not sent any more."""


class Asking:
    """Gets replies from a server, or from the ledger where they have been paid for.

    Args:
        server: The server.
        path: Of the call.
        ledger: Where answers and expenses are kept.
        check: Looks at a reply, and raises NoAnswerError where it is worth another try and UserError where it never will be of
            use. Only replies that pass are kept.
        retries: How often a request is sent again.
    """

    def __init__(self, server: Server, path: str, ledger: Ledger, check: Callable[[Any], object], retries: int) -> None:
        self.server = server
        self.path = path
        self.ledger = ledger
        self.check = check
        self.retries = retries
        self._stop = threading.Event()
        self._random = random.SystemRandom()  # the global generator belongs to training

    def replies(self, bodies: Mapping[str, bytes], bounds: Mapping[str, Usage], concurrency: int) -> dict[str, Any]:
        """The reply to each request, by key.

        Args:
            bodies: The requests, each under its key.
            bounds: What each uses at most.
            concurrency: Requests under way at once.

        Raises:
            UserError: The server refuses, does not answer, or sends what is of no use; or the budget is used up. Replies that
                had come by then are kept.
        """
        known = {key: json.loads(answer) for key, answer in self.ledger.answers(bodies).items()}
        missing = [key for key in bodies if key not in known]
        if not missing:
            return known
        with ThreadPoolExecutor(concurrency) as pool:
            futures = {pool.submit(self._answer, key, bodies[key], bounds[key]): key for key in missing}
            try:
                for future in with_progress(as_completed(futures), len(missing), f"Answers from {self.server.url}"):
                    with suppress(StoppedError):  # what has stopped it comes up too
                        known[futures[future]] = future.result()
            except BaseException:
                self._stop.set()
                pool.shutdown(wait=False, cancel_futures=True)
                raise
        return known

    def _answer(self, key: str, body: bytes, bound: Usage) -> Any:
        try:
            return self._try_often(key, body, bound)
        except Exception:
            # Here and not where it comes up: by then this thread would have sent the next request.
            self._stop.set()
            raise

    def _try_often(self, key: str, body: bytes, bound: Usage) -> Any:
        for attempt in range(self.retries + 1):
            try:
                return self._try(key, body, bound)
            except NoAnswerError as failure:
                if attempt == self.retries:
                    raise UserError(
                        f"Endpoint: gave up after {attempt + 1} tries. {failure}. Answers so far are kept in "
                        f"{self.ledger.file} and are not asked for again: start again to go on."
                    ) from None
                wait = failure.wait + min(FIRST_WAIT * 2**attempt, LONGEST_WAIT) * self._random.uniform(0.5, 1)
                level = logging.WARNING if wait > WORTH_A_WARNING else logging.INFO
                log.log(level, "%s. Trying again in %.1f seconds.", failure, wait)
                self._pause(wait)
        raise AssertionError("the last try returns or raises")

    def _try(self, key: str, body: bytes, bound: Usage) -> Any:
        """One request. Whatever becomes of it, the ledger hears of it."""
        self._pause(0)
        wait = self.ledger.admit(bound)
        used, kept = NOTHING, {}
        try:
            self._pause(wait)
            try:
                reply = self.server.post(self.path, body)
            except NoAnswerError as failure:
                used = NOTHING if failure.is_free else bound
                raise
            used = usage_of(reply, bound)
            self.check(reply)
            kept = {key: json.dumps(reply)}
        finally:
            self.ledger.settle(bound, used, kept)
        return reply

    def _pause(self, seconds: float) -> None:
        if self._stop.wait(seconds) if seconds > 0 else self._stop.is_set():
            raise StoppedError
