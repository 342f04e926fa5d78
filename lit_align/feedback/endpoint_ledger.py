"""What has been asked of a server and what it has cost: kept on disk, so that nothing is paid for twice."""

from __future__ import annotations

import sqlite3
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from lit_align.errors import UserError

SECONDS_FOR_THE_LOCK = 60.0
"""How long a process waits for another one that is writing."""

TABLES = (
    "CREATE TABLE IF NOT EXISTS answers (key TEXT PRIMARY KEY, answer TEXT NOT NULL)",
    "CREATE TABLE IF NOT EXISTS spent (source TEXT PRIMARY KEY, requests INTEGER NOT NULL, input_tokens INTEGER NOT NULL, "
    "output_tokens INTEGER NOT NULL, next_slot REAL NOT NULL)",
)


class Usage(NamedTuple):
    """What requests have used."""

    requests: int
    input_tokens: int
    output_tokens: int


@dataclass(frozen=True)
class Budget:
    """How much a server may be asked. A request that might exceed it is not sent.

    It is for all answers that the cache file holds from this server and model, those of earlier runs and of other processes
    included. What a request might use is not known before: an input token is taken to be at least one byte of the request.

    Args:
        max_requests: Requests that the server may answer. None for any number.
        max_cost: What the answers may cost, in the currency of the prices. None for any cost.
        input_price: Of a million input tokens, as the server counts them in `usage`.
        output_price: Of a million output tokens.
    """

    max_requests: int | None = None
    max_cost: float | None = None
    input_price: float | None = None
    output_price: float | None = None

    def __post_init__(self) -> None:
        if self.max_requests is not None and self.max_requests < 1:
            raise UserError(f"budget.max_requests must be at least 1, got {self.max_requests}.")
        prices = [price for price in (self.input_price, self.output_price) if price is not None]
        if len(prices) != (0 if self.max_cost is None else 2):
            raise UserError(
                "budget: max_cost, input_price and output_price go together; give all three, or none to count requests only."
            )
        if any(not price >= 0 for price in prices) or (self.max_cost is not None and not self.max_cost > 0):
            raise UserError(
                f"budget: max_cost ({self.max_cost}) must be above 0, and the prices ({self.input_price}, "
                f"{self.output_price}) 0 or more."
            )

    def cost(self, used: Usage) -> float:
        """In the currency of the prices; 0 where there are none."""
        return (used.input_tokens * (self.input_price or 0) + used.output_tokens * (self.output_price or 0)) / 1e6

    def exceeded_by(self, used: Usage) -> str:
        """The limit that so much is above, as the argument has it; empty where there is none."""
        if self.max_requests is not None and used.requests > self.max_requests:
            return f"max_requests {self.max_requests:,}"
        if self.max_cost is not None and self.cost(used) > self.max_cost:
            return f"max_cost {self.max_cost:g}"
        return ""


class Ledger:
    """Answers and expenses in one SQLite file, which several processes of a machine and the threads of each may use.

    A request's upper bound is written down before it is sent, and what it really used together with its answer, in one
    transaction, before the answer goes anywhere. So a process that is killed has lost no answer, and what it had under way
    counts as spent.

    Args:
        file: The SQLite file, made if it is not there.
        source: The server and the model.
        budget: What may be spent on them.
        requests_per_minute: Requests are at least this far apart, over all processes. None for any pace.
    """

    def __init__(self, file: str, source: str, budget: Budget, requests_per_minute: float | None) -> None:
        self.file = file
        self.source = source
        self.budget = budget
        self.apart = 60 / requests_per_minute if requests_per_minute else 0.0
        self._under_way = 0
        self._changed = threading.Condition(threading.RLock())
        try:
            Path(file).parent.mkdir(parents=True, exist_ok=True)
            self._db = sqlite3.connect(file, SECONDS_FOR_THE_LOCK, isolation_level=None, check_same_thread=False)
        except (OSError, sqlite3.Error) as error:
            raise UserError(
                f"The cache {file!r} cannot be opened: {error}. Name a file that can be written."
            ) from error
        # A commit then does not wait for the disk, and is safe from a kill, if not from a power cut. Where another process
        # holds the file just now, that one does it for both; what is really wrong comes up below.
        with suppress(sqlite3.Error):
            self._db.execute("PRAGMA synchronous = NORMAL")
            self._db.execute("PRAGMA journal_mode = WAL")
        try:
            with self._transaction():
                for table in TABLES:
                    self._db.execute(table)
                self._db.execute("INSERT OR IGNORE INTO spent VALUES (?, 0, 0, 0, 0)", (source,))
        except UserError:
            self.close()
            raise

    def close(self) -> None:
        """Lets go of the file."""
        self._db.close()

    def answers(self, keys: Iterable[str]) -> dict[str, str]:
        """The answers there are."""
        with self._changed:
            found = [
                self._db.execute("SELECT key, answer FROM answers WHERE key = ?", (key,)).fetchone() for key in keys
            ]
        return dict(row for row in found if row)

    def spent(self) -> Usage:
        """What this server and model have used so far, with what is under way at its bound."""
        with self._changed:
            row = self._db.execute(
                "SELECT requests, input_tokens, output_tokens FROM spent WHERE source = ?", (self.source,)
            ).fetchone()
        return Usage(*row)

    def admit(self, bound: Usage) -> float:
        """Writes down a request that is about to be sent; `settle` has to follow.

        Waits for requests under way in this process, which may turn out cheaper than their bound.

        Args:
            bound: What it uses at most.

        Returns:
            Seconds to wait before it is sent.

        Raises:
            UserError: It might exceed the budget.
        """
        with self._changed:
            while True:
                with self._transaction():
                    used = self.spent()
                    limit = self.budget.exceeded_by(Usage(*map(sum, zip(used, bound, strict=True))))
                    if not limit:
                        self._add(bound, 1)
                        self._under_way += 1
                        return self._slot()
                if not self._under_way:
                    raise UserError(self._too_much(limit, used))
                self._changed.wait()

    def settle(self, bound: Usage, used: Usage, answers: Mapping[str, str]) -> None:
        """Replaces the bound of a request that was admitted by what it used, and keeps its answer.

        Args:
            bound: As it was admitted with.
            used: What it used; nothing where the server did not take it.
            answers: Its answer by key, or nothing.

        Raises:
            UserError: The file cannot be written.
        """
        with self._changed:
            try:
                with self._transaction():
                    self._add(bound, -1)
                    self._add(used, 1)
                    self._db.executemany("INSERT OR REPLACE INTO answers VALUES (?, ?)", answers.items())
            finally:
                self._under_way -= 1
                self._changed.notify_all()

    def _add(self, used: Usage, sign: int) -> None:
        self._db.execute(
            "UPDATE spent SET requests = requests + ?, input_tokens = input_tokens + ?, output_tokens = output_tokens + ? "
            "WHERE source = ?",
            (*(sign * number for number in used), self.source),
        )

    def _slot(self) -> float:
        """Takes the next moment at which a request may be sent: seconds from now."""
        if not self.apart:
            return 0.0
        now = time.time()
        (free,) = self._db.execute("SELECT next_slot FROM spent WHERE source = ?", (self.source,)).fetchone()
        slot = max(now, free)
        self._db.execute("UPDATE spent SET next_slot = ? WHERE source = ?", (slot + self.apart, self.source))
        return float(slot - now)

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        """All of what is inside is written or nothing; other threads and processes wait.

        Raises:
            UserError: The file cannot be written, is no database, or is held by another process.
        """
        with self._changed:
            try:
                self._db.execute("BEGIN IMMEDIATE")
                yield
                self._db.execute("COMMIT")
            except sqlite3.Error as error:
                raise UserError(
                    f"The cache {self.file!r} cannot be used: {error}. See that the file can be written and is one of "
                    "lit_align's, or name another one."
                ) from error
            finally:
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")

    def _too_much(self, limit: str, used: Usage) -> str:
        cost = f", which cost {self.budget.cost(used):.4f}" if self.budget.max_cost is not None else ""
        return (
            f"The budget is used up: the next request to {self.source} might exceed {limit}. So far there were "
            f"{used.requests:,} requests with {used.input_tokens:,} input and {used.output_tokens:,} output tokens{cost}. "
            f"Their answers are kept in {self.file} and are not asked for again: raise the limit and start again to go on."
        )
