"""What is asked of an annotation, and which combinations make no sense."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from lit_align.annotation.labels import PairsOf
from lit_align.errors import UserError
from lit_align.feedback.selection import Strategy

Kind = Literal["preferences", "rankings", "scores"]


@dataclass(frozen=True)
class Request:
    """Which comparisons are made, and of what kind the rows are that come of them.

    Args:
        kind: `preferences`, `rankings` or `scores`.
        judges: How many judges there are; none where a reward scores.
        pairs: Which pairs of a row make preferences; `first` if not given.
        select: Which pairs of all rows are compared instead, where not all can be.
        budget: How many of them.
        ensemble: How many rewards the selection asks.
        seed: Of the selection; 0 if not given.
        batch_size: Rows that are judged at once.
    """

    kind: Kind
    judges: int
    pairs: PairsOf | None
    select: Strategy | None
    budget: int | None
    ensemble: int
    seed: int | None
    batch_size: int

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise UserError(f"batch_size must be at least 1, got {self.batch_size}.")
        if self.kind != "preferences" and (self.pairs or self.select):
            useless = "pairs" if self.pairs else "select"
            raise UserError(
                f"--kind {self.kind} compares all responses of a row, so --{useless} has no effect: leave it out."
            )
        if self.select is None:
            given = {"budget": self.budget is not None, "ensemble": self.ensemble > 0, "seed": self.seed is not None}
            if idle := [name for name, there in given.items() if there]:
                raise UserError(f"--{idle[0]} is for --select, and has no effect without it: leave it out.")
            return
        if self.pairs:
            raise UserError("--select chooses among all pairs, so --pairs has no effect: leave it out.")
        if self.budget is None or self.budget < 1:
            raise UserError(f"--select needs a --budget of at least 1 pair, got {self.budget}.")
        if self.select == "uniform" and self.ensemble:
            raise UserError("--select uniform asks nobody, so --ensemble has no effect: leave it out.")
        if self.select != "uniform" and self.ensemble < 2:
            raise UserError(
                f"--select {self.select} needs two rewards that may disagree: give --ensemble twice or more."
            )
        if self.select == "disagreement" and self.seed is not None:
            raise UserError("--select disagreement draws nothing, so --seed has no effect: leave it out.")

    @property
    def pairs_of_row(self) -> PairsOf:
        """The pairs of a row where nothing selects among all of them."""
        return "all" if self.kind != "preferences" else self.pairs or "first"
