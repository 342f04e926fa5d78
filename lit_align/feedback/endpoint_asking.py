"""Many requests to one server at once: threads, waits, retries, and what is kept of the answers."""

from __future__ import annotations

import json
import logging
import math
import random
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent import futures
from contextlib import suppress
from typing import Any, NamedTuple

from lit_align.errors import UserError
from lit_align.feedback.endpoint_http import NoAnswerError, RefusedError, Server
from lit_align.feedback.endpoint_ledger import Ledger, Usage
from lit_align.feedback.endpoint_replies import usage_of

log = logging.getLogger(__name__)

FIRST_WAIT, LONGEST_WAIT = 1.0, 60.0
"""Seconds before the second try, doubled at every further one, and the most they become."""

NOTHING = Usage(0, 0, 0)

TOLD_EVERY = 10.0
"""Seconds from one warning about a failure that may pass to the next; the first one is told at once."""


class StoppedError(Exception):
    """Another request has failed for good, so this one is not sent any more."""


class Request(NamedTuple):
    """What is sent.

    Args:
        key: What the answer is kept under.
        path: Of the call.
        body: JSON.
        bound: What it uses at most.
    """

    key: str
    path: str
    body: bytes
    bound: Usage


class Asking:
    """Gets replies from a server, or from the ledger where they have been paid for.

    Args:
        server: The server.
        ledger: Where answers and expenses are kept.
        check: Looks at a reply, and raises NoAnswerError where it is worth another try and UserError where it never will be of
            use. Only replies that pass are kept.
        retries: How often a request is sent again.
    """

    def __init__(self, server: Server, ledger: Ledger, check: Callable[[Any], object], retries: int) -> None:
        self.server = server
        self.ledger = ledger
        self.check = check
        self.retries = retries
        self._stop = threading.Event()
        self._told = -math.inf
        self._random = random.SystemRandom()  # the global generator belongs to training

    def arriving(self, requests: Iterable[Request], concurrency: int) -> Iterator[tuple[str, Any]]:
        """Each request's key and the reply to it, in the order in which they are there.

        Args:
            requests: Each key once. They are taken as they are about to be sent, so there may be any number of them.
            concurrency: Requests under way at once.

        Raises:
            UserError: The server refuses, does not answer, or sends what is of no use; or the budget is used up. Replies that
                had come by then are kept.
        """
        keys: dict[futures.Future[Any], str] = {}

        def done(allowed: int) -> Iterator[tuple[str, Any]]:
            while len(keys) > allowed:
                for future in futures.wait(keys, return_when=futures.FIRST_COMPLETED).done:
                    key = keys.pop(future)
                    with suppress(StoppedError):  # what has stopped it comes up too
                        yield key, future.result()

        with futures.ThreadPoolExecutor(concurrency) as pool:
            try:
                for request in requests:
                    if answer := self.ledger.answers([request.key]):
                        yield request.key, json.loads(answer[request.key])
                        continue
                    keys[pool.submit(self._answer, request)] = request.key
                    # As many again wait for a thread, so that none is idle while replies are looked at.
                    yield from done(allowed=2 * concurrency)
                yield from done(allowed=0)
            except BaseException as reason:
                self._stop.set()
                pool.shutdown(wait=False, cancel_futures=True)
                if isinstance(reason, KeyboardInterrupt):
                    log.warning("Stopping as soon as the requests under way are answered; their answers are kept.")
                raise

    def _answer(self, request: Request) -> Any:
        try:
            return self._try_often(request)
        except Exception:
            # Here and not where it comes up: by then this thread would have sent the next request.
            self._stop.set()
            raise

    def _try_often(self, request: Request) -> Any:
        for attempt in range(self.retries + 1):
            try:
                return self._try(request)
            except NoAnswerError as failure:
                if attempt == self.retries:
                    raise UserError(
                        f"{self.server.url}: gave up after {attempt + 1} tries. {failure}. Answers so far are kept in "
                        f"{self.ledger.file} and are not asked for again: start again to go on."
                    ) from None
                wait = failure.wait + min(FIRST_WAIT * 2**attempt, LONGEST_WAIT) * self._random.uniform(0.5, 1)
                log.log(self._level(), "%s. Trying again in %.1f seconds.", failure, wait)
                self._pause(wait)
        raise AssertionError("the last try returns or raises")

    def _try(self, request: Request) -> Any:
        """One request. Whatever becomes of it, the ledger hears of it."""
        self._pause(0)
        wait = self.ledger.admit(request.bound)
        used, kept = NOTHING, {}
        try:
            self._pause(wait)
            try:
                reply = self.server.post(request.path, request.body)
            except NoAnswerError as failure:
                used = NOTHING if failure.is_free else request.bound
                raise
            except RefusedError as refusal:
                refusal.key = request.key
                raise
            used = usage_of(reply, request.bound)
            self.check(reply)
            kept = {request.key: json.dumps(reply)}
        finally:
            self.ledger.settle(request.bound, used, kept)
        return reply

    def _level(self) -> int:
        """Of a failure that may pass: one line now and then, however many requests wait for the same server."""
        now = time.monotonic()
        if now - self._told < TOLD_EVERY:
            return logging.INFO
        self._told = now
        return logging.WARNING

    def _pause(self, seconds: float) -> None:
        if self._stop.wait(seconds) if seconds > 0 else self._stop.is_set():
            raise StoppedError
