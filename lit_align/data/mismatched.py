"""Labelled batches with their mismatched pairs: each response once more, after a prompt that it does not answer.

KTO's reference point z0 is the mean log-ratio of such pairs (2402.01306, section 4.1). The paper shifts responses by one within
a batch. Here a response meets the same other prompt whenever its row is served: z0 then depends neither on how rows are cut
into batches and ranks nor on the last batch of an epoch being large enough, and its reference log-probs can be cached.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from lit_align.data.token_groups import TokenGroups
from lit_align.errors import UserError
from lit_align.groups import GroupBatch, TokenGroup


class LabelBatch(GroupBatch):
    """Labelled responses, and beside them their mismatched pairs.

    Args:
        mismatched: The same N responses in the same order, each behind another prompt.
        matched: The arguments of `GroupBatch`.
    """

    def __init__(self, mismatched: GroupBatch, **matched: Any) -> None:
        super().__init__(**matched)
        self.mismatched = mismatched

    def _map(self, move: Callable[[Tensor], Tensor]) -> GroupBatch:
        moved = super()._map(move)
        assert isinstance(moved, LabelBatch)
        moved.mismatched = self.mismatched._map(move)
        return moved


class CollateMismatched:
    """Makes a `LabelBatch` of rows of one data set.

    A mismatched pair is no longer than the longest row of the data: a longer one loses the beginning of its prompt, as
    encoding cuts it.

    Args:
        groups: The data set.
        collate: A layout.

    Raises:
        UserError: All rows have the same prompt.
    """

    def __init__(self, groups: TokenGroups, collate: Callable[[list[TokenGroup]], GroupBatch]) -> None:
        self.groups = groups
        self.collate = collate
        self.partners, self.longest = _partners(groups[row] for row in range(len(groups)))

    def __call__(self, groups: list[TokenGroup]) -> LabelBatch:
        """The rows as a batch, with their mismatched pairs."""
        mismatched = self.collate([self.mismatch(group) for group in groups])
        return LabelBatch(mismatched, **vars(self.collate(groups)))

    def mismatch(self, group: TokenGroup) -> TokenGroup:
        """The responses of a row behind the prompt of its partner."""
        prompt = self.groups[int(self.partners[group.row])].prompt
        room = self.longest - max(map(len, group.responses))
        if len(prompt) > room:
            # A token that begins both prompts is BOS, which models attend to from everywhere.
            head = prompt[: prompt[0] == group.prompt[0] and room > 1]
            prompt = [*head, *prompt[len(prompt) - room + len(head) :]]
        return group._replace(prompt=prompt)


def _partners(groups: Iterable[TokenGroup]) -> tuple[NDArray[np.int64], int]:
    """For each row the one whose prompt its responses meet, and the tokens of the longest row.

    In a random order, always the same, it is the next row that has another prompt: data are often sorted by topic, and
    neighbours would be mismatched in name only.
    """
    prompts, longest = [], 0
    for group in groups:
        prompts.append(hash(tuple(group.prompt)))
        longest = max(longest, len(group.prompt) + max(map(len, group.responses)))
    if len(set(prompts)) == 1:
        raise UserError(
            "All labelled rows have the same prompt. KTO compares responses with how they fit other prompts, so it needs rows "
            "of at least two."
        )
    order = np.random.default_rng(0).permutation(len(prompts))
    partners = np.empty(len(prompts), dtype=np.int64)
    other = order[0]
    pairs = list(zip(order[::-1], np.roll(order, -1)[::-1], strict=True))
    # Twice round, because the last row's partner is among the first.
    for here, after in pairs + pairs:
        if prompts[here] != prompts[after]:
            other = after
        partners[here] = other
    return partners, longest
