"""The DataModules: which rows each takes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, Literal

from transformers import PreTrainedTokenizerBase

from lit_align.data.base import GroupDataModule
from lit_align.data.counts import Counts
from lit_align.data.mismatched import CollateMismatched
from lit_align.data.row_reader import RowError
from lit_align.data.spans import unchanged_spans
from lit_align.data.streamed import EncodedGroups
from lit_align.errors import UserError
from lit_align.groups import Group, TokenGroup


class SFTData(GroupDataModule):
    """Demonstrations: rows with one response, which is good (`prompt` + `completion` or `response`, or `messages`).

    Of improvements (`prompt` + `response` + `edited`) the edited response is one.

    Args:
        unchanged_weight: Of improvements, what the words weigh that were in the response before it was edited; the others
            weigh 1, and so does everything if this is 1. Less, or 0, learns what the edit changed rather than what it kept.
        rows: The arguments of `GroupDataModule`.
    """

    kind = "sft"

    def __init__(self, *args: Any, unchanged_weight: float = 1.0, **rows: Any) -> None:
        super().__init__(*args, **rows)
        if not 0 <= unchanged_weight <= 1:
            raise UserError(f"unchanged_weight must lie between 0 and 1, got {unchanged_weight}.")
        self.unchanged_weight = unchanged_weight

    def accept(self, group: Group) -> Group:
        """The row, if it has one response and no label, or is an improvement."""
        if group.edited:
            edited, original = group.responses
            spans = None if self.unchanged_weight == 1 else unchanged_spans(original, edited, self.unchanged_weight)
            return replace(
                group, responses=(edited,), scores=None, edited=False, weights=None if spans is None else (spans,)
            )
        if len(group.responses) != 1 or group.labels is not None:
            found = "a label" if group.labels is not None else f"{len(group.responses)} responses to one prompt"
            raise RowError(
                f"{group.source}: SFTData takes demonstrations, one response each, and this row has {found}."
            )
        return group

    def _encode_counted(
        self, split: Literal["train", "val"], tokenizer: PreTrainedTokenizerBase, counts: Counts
    ) -> EncodedGroups:
        encoded = super()._encode_counted(split, tokenizer, counts)
        if split == "train" and self.unchanged_weight != 1 and not counts.edited:
            raise UserError("unchanged_weight has no effect: no training row is an improvement. Leave it out.")
        return encoded


class PreferenceData(GroupDataModule):
    """Pairs of which one is preferred (`prompt` + `chosen` + `rejected`; of improvements the edited response is)."""

    kind = "preference"

    def accept(self, group: Group) -> Group | None:
        """The row, if it has two responses and one is preferred."""
        if len(group.responses) != 2 or group.scores is None:
            raise RowError(
                f"{group.source}: PreferenceData takes pairs with a preference, and this row has {_found(group)}."
                f"{' RankingData takes any number.' if group.scores else ' LabelData takes it.' if group.labels else ''}"
            )
        return None if group.scores[0] == group.scores[1] else group


class RankingData(GroupDataModule):
    """Two responses or more with scores or ranks (`prompt` + `responses` + `scores` or `ranking`; pairs count as two)."""

    kind = "ranking"

    def accept(self, group: Group) -> Group | None:
        """The row, if it has scores that are not all equal."""
        if len(group.responses) < 2 or group.scores is None:
            raise RowError(
                f"{group.source}: RankingData takes two responses or more with scores or ranks, and this row has "
                f"{_found(group)}."
            )
        return None if len(set(group.scores)) == 1 else group


class LabelData(GroupDataModule):
    """Responses labelled desirable or not (`prompt` + `completion` + `label`, or `messages` + `label`).

    An early stop (`prompt` + `prefix` + `stop`) is an undesirable response without an end.
    Pairs serve as two labelled responses to one prompt, the preferred one desirable. Every batch has its mismatched pairs
    beside it; see `lit_align.data.mismatched`.
    """

    kind = "label"

    def accept(self, group: Group) -> Group | None:
        """The row, if its responses have labels, or are two of which one is preferred."""
        if group.labels is not None:
            return group
        if len(group.responses) != 2 or group.scores is None:
            raise RowError(
                f"{group.source}: LabelData takes responses with a label, or pairs with a preference, and this row has "
                f"{_found(group)}."
            )
        first, second = group.scores
        if first == second:
            return None
        return replace(group, scores=None, labels=(first > second, second > first))

    def label_counts(self) -> tuple[int, int]:
        """How many training responses are desirable, and how many are not; after `setup("fit")`."""
        rows = self._encoded["train"]
        return rows.n_desirable, int(rows.response_offsets[-1]) - rows.n_desirable

    def _collate(self, split: str) -> Callable[[list[TokenGroup]], Any]:
        return CollateMismatched(self._encoded[split], super()._collate(split))


def _found(group: Group) -> str:
    """What a row has, for the message of a DataModule that does not take it."""
    known = "neither scores nor a label" if group.scores is None else "scores"
    if group.labels is not None:
        known = "a label"
    return f"{len(group.responses)} response{'' if len(group.responses) == 1 else 's'} with {known}"
