"""Batches of about equally many tokens, where a number of prompts would make some many times as large as others."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from lit_align.data.token_groups import TokenGroups
from lit_align.errors import UserError

Rows = NDArray[np.int64]

NOTHING = (0, 0, 0)
MORE = 1.01
"""By what a budget is raised until an epoch's rows go into as many batches as the first epoch's did."""


class TokenBudget:
    """How many tokens go into a batch over all ranks, as a layout counts them, and which ranks they go to.

    Padded, a batch has as many as its responses times the longest prompt and response together; shared, as many as its prompts
    and responses have. The batches of an epoch are consecutive pieces of its order, so neither seed nor epoch means less than
    with batches of so many prompts, and they do not depend on the number of ranks.

    Args:
        groups: The data set.
        tokens: In a batch of one rank.
        world: Number of ranks.
        padded: Whether responses have rows of their own, which are padded to the longest.

    Raises:
        UserError: A group alone is more than one rank may have.
    """

    def __init__(self, groups: TokenGroups, tokens: int, world: int, *, padded: bool) -> None:
        self.tokens = tokens * world
        self.world = world
        self.padded = padded
        responses, longest, total = groups.sizes
        self._responses: list[int] = responses.tolist()
        self._longest: list[int] = longest.tolist()
        self._total: list[int] = total.tolist()
        alone = responses * longest if padded else total
        largest = int(alone.argmax())
        if alone[largest] > tokens:
            raise UserError(
                f"{groups.source(largest)} alone has {alone[largest]:,} tokens, and tokens_per_batch is {tokens:,}: raise it, "
                "or lower max_length."
            )

    def __str__(self) -> str:
        return f"as many as have {self.tokens:,} tokens {'with' if self.padded else 'without'} padding"

    def batches(self, order: Rows, number: int | None = None) -> list[Rows]:
        """The rows of an epoch, in this order, as the batches of all ranks together.

        Args:
            order: Of all rows.
            number: Of batches, that of the first epoch, because a run counts on epochs of equally many steps. The budget is
                raised a little where they would be more, and the largest batches are halved where they would be fewer.
        """
        tokens = float(self.tokens)
        ends = self._ends(order.tolist(), tokens)
        while number is not None and len(ends) > number:
            tokens *= MORE
            ends = self._ends(order.tolist(), tokens)
        pieces = [piece for piece in np.split(order, ends) if len(piece)]
        while number is not None and len(pieces) < number:
            at = max((i for i, rows in enumerate(pieces) if len(rows) > 1), key=lambda i: self.size(pieces[i].tolist()))
            pieces[at : at + 1] = np.array_split(pieces[at], 2)
        return pieces

    def share(self, batch: Rows, rank: int) -> Rows:
        """A rank's part of a batch, in order: the longest row first, each goes to the rank that then has the least.

        Where there are fewer rows than ranks, each of the first ranks has one.
        """
        rows = batch.tolist()
        length = self._longest if self.padded else self._total
        parts, held = [list[int]() for _ in range(self.world)], [NOTHING] * self.world
        for place in sorted(range(len(rows)), key=lambda place: -length[rows[place]]):
            more = [self._with(one, rows[place]) for one in held]
            to = min(range(self.world), key=lambda one: self._tokens(more[one]))
            held[to] = more[to]
            parts[to].append(place)
        return batch[sorted(parts[rank])]

    def size(self, rows: Sequence[int]) -> int:
        """Tokens of these rows in one batch."""
        held = NOTHING
        for row in rows:
            held = self._with(held, row)
        return self._tokens(held)

    def _ends(self, order: list[int], tokens: float) -> list[int]:
        """Where the pieces end if each takes what it has room for."""
        ends: list[int] = []
        held = NOTHING
        for place, row in enumerate(order):
            more = self._with(held, row)
            if place and self._tokens(more) > tokens:
                ends.append(place)
                more = self._with(NOTHING, row)
            held = more
        return [*ends, len(order)]

    def _with(self, held: tuple[int, int, int], row: int) -> tuple[int, int, int]:
        """What there is with one row more: responses, the tokens of the longest with its prompt, and all tokens."""
        responses, longest, total = held
        return responses + self._responses[row], max(longest, self._longest[row]), total + self._total[row]

    def _tokens(self, held: tuple[int, int, int]) -> int:
        return held[0] * held[1] if self.padded else held[2]
