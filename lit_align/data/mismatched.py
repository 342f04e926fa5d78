"""Labelled batches with their mismatched pairs: each response once more, after a prompt that it does not answer.

KTO's reference point z0 is the mean log-ratio of such pairs (2402.01306, section 4.1). The paper shifts responses by one within
a batch. Here a response meets the same other prompt whenever its row is served: z0 then depends neither on how rows are cut
into batches and ranks nor on the last batch of an epoch being large enough, and its reference log-probs can be cached.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from lit_align.data.streamed import EncodedGroups
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

    A mismatched pair is no longer than the longest row of the data, or than `max_length` where rows are streamed and their
    lengths not known: a longer one loses the beginning of its prompt, as encoding cuts it.

    Args:
        groups: The data set.
        collate: A layout.

    Raises:
        UserError: All rows have the same prompt.
    """

    def __init__(self, groups: EncodedGroups, collate: Callable[[list[TokenGroup]], GroupBatch]) -> None:
        self.groups = groups
        self.collate = collate
        self.partners = _partners(groups.prompt_keys)
        self.longest = groups.longest

    def __call__(self, groups: list[TokenGroup]) -> LabelBatch:
        """The rows as a batch, with their mismatched pairs."""
        partners = self.groups.fetch([int(self.partners[group.row]) for group in groups])
        mismatched = [self._behind(partner.prompt, group) for partner, group in zip(partners, groups, strict=True)]
        return LabelBatch(self.collate(mismatched), **vars(self.collate(groups)))

    def mismatch(self, group: TokenGroup) -> TokenGroup:
        """The responses of a row behind the prompt of its partner."""
        return self._behind(self.groups[int(self.partners[group.row])].prompt, group)

    def _behind(self, prompt: Sequence[int], group: TokenGroup) -> TokenGroup:
        """The responses of a row behind another prompt."""
        room = self.longest - max(map(len, group.responses))
        if len(prompt) > room:
            # A token that begins both prompts is BOS, which models attend to from everywhere.
            head = prompt[: prompt[0] == group.prompt[0] and room > 1]
            prompt = [*head, *prompt[len(prompt) - room + len(head) :]]
        return group._replace(prompt=prompt)


def _partners(prompts: NDArray[np.uint32]) -> NDArray[np.int64]:
    """For each row the one whose prompt its responses meet.

    In a random order, always the same, it is the next row that has another prompt: data are often sorted by topic, and
    neighbours would be mismatched in name only.

    Args:
        prompts: For each row a number that stands for its prompt, `(rows,)`.
    """
    if (prompts == prompts[0]).all():
        raise UserError(
            "All labelled rows have the same prompt. KTO compares responses with how they fit other prompts, so it needs rows "
            "of at least two."
        )
    order = np.random.default_rng(0).permutation(len(prompts))
    # Twice round, because the last row's partner is among the first.
    around = np.concatenate([order, order])
    changes = np.append(prompts[around[:-1]] != prompts[around[1:]], True)
    places = np.where(changes, np.arange(1, len(around) + 1), len(around))
    next_other = np.minimum.accumulate(places[::-1])[::-1]
    partners = np.empty(len(prompts), dtype=np.int64)
    partners[order] = around[next_other[: len(order)]]
    return partners
