"""What became of the rows of one data set, as one line for the log."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Literal, TypeVar

from lightning.pytorch.utilities import rank_zero_info

from lit_align.data.row_reader import RowError

T = TypeVar("T")

OnBadRow = Literal["raise", "skip"]
PROGRESS_SECONDS = 10.0


@dataclass
class Counts:
    """Counts of one data set, filled as its rows pass through reading, checking and encoding.

    Args:
        on_bad_row: `raise` stops at the first bad row, `skip` counts it and keeps the first three reasons.
    """

    on_bad_row: OnBadRow = "raise"
    bad: int = 0
    reasons: list[str] = field(default_factory=list)
    ties: int = 0
    edited: int = 0
    too_long: int = 0
    prompts_cut: int = 0
    responses_cut: int = 0
    groups: int = 0
    responses: int = 0
    tokens: int = 0

    def bad_row(self, error: RowError) -> None:
        """Counts a bad row, or raises its error where bad rows are not skipped."""
        if self.on_bad_row == "raise":
            raise error
        self.bad += 1
        if len(self.reasons) < 3:
            self.reasons.append(str(error))

    def __str__(self) -> str:
        # Streamed rows are counted before they are encoded.
        tokens = f", {self.tokens:,} tokens" if self.tokens else ""
        parts = [f"{self.groups:,} prompts with {self.responses:,} responses{tokens}"]
        for count, what in (
            (self.bad, "bad rows skipped"),
            (self.ties, "without a preference dropped"),
            (self.too_long, "dropped as too long"),
            (self.prompts_cut, "prompts cut on the left"),
            (self.responses_cut, "responses cut on the right"),
        ):
            if count:
                parts.append(f"{count:,} {what}")
        return "; ".join(parts) + "".join(f"\n  skipped: {reason}" for reason in self.reasons)


def with_progress(rows: Iterable[T], split: str, done: str) -> Iterator[T]:
    """The rows, with a line in the log now and then where there are many, which says what is done with them."""
    last = time.monotonic()
    for number, row in enumerate(rows):
        if time.monotonic() - last > PROGRESS_SECONDS:
            last = time.monotonic()
            rank_zero_info(f"data.{split}: {number:,} rows {done} so far")
        yield row
