"""Rows of responses as answers that can be judged."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, NamedTuple, overload

from lit_align.data.row_reader import RowError
from lit_align.data.rows import read_rows
from lit_align.data.schema import read_group
from lit_align.errors import UserError
from lit_align.feedback import Answer

BESIDE = ("finished", "models")
"""Columns that have one value for each response, where they are there."""


class Candidates(NamedTuple):
    """The answers to one prompt, no two of them the same text.

    Args:
        answers: K of them, at least two.
        scores: What the row says of them already, higher is better; None where it says nothing.
        models: Which model each is of; None where the row does not say.
    """

    answers: tuple[Answer, ...]
    scores: tuple[float, ...] | None
    models: tuple[str, ...] | None


@dataclass
class Reading:
    """What became of the rows of a file.

    Args:
        rows: Read.
        empty: Responses without any text, which are left out, because nothing can be trained on them.
        repeated: Responses that say what another one of the row says, which are left out.
        cut: Responses that a length limit cut; they are judged like others unless they are to be left out.
        too_few: Rows that are left out because fewer than two responses remain.
    """

    rows: int = 0
    empty: int = 0
    repeated: int = 0
    cut: int = 0
    too_few: int = 0


class NoTokens(Sequence[int]):
    """Where an answer read from a file would have the policy's tokens: it refuses to be looked into."""

    @overload
    def __getitem__(self, index: int) -> int: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[int]: ...
    def __getitem__(self, index: int | slice) -> int | Sequence[int]:
        raise self._refusal()

    def __len__(self) -> int:
        raise self._refusal()

    @staticmethod
    def _refusal() -> UserError:
        return UserError(
            "A reward counts the tokens of a response, and files of responses hold text, of no policy in particular. Name "
            "rewards and judges that read text."
        )


def read_candidates(
    name: str, columns: Mapping[str, str] | None, max_rows: int | None, drop_cut: bool
) -> tuple[list[Candidates], Reading]:
    """The rows of a data set that have two different responses or more.

    Args:
        name: As in `read_rows`: a file that `generate` wrote, or rows of any kind with several responses.
        columns: As in `read_group`.
        max_rows: Reads only so many rows.
        drop_cut: Leaves out responses that a length limit cut.

    Raises:
        UserError: A row is malformed, or no row has two responses.
    """
    reading = Reading()
    read = [_candidates(*item, columns, drop_cut, reading) for item in islice(read_rows(name), max_rows)]
    kept = [candidates for candidates in read if candidates is not None]
    if not kept:
        raise UserError(f"No row of {name} has two different responses that could be compared: {reading}.")
    return kept, reading


def _candidates(
    source: str, row: object, columns: Mapping[str, str] | None, drop_cut: bool, reading: Reading
) -> Candidates | None:
    if isinstance(row, RowError):
        raise row
    reading.rows += 1
    if columns is None and isinstance(row, Mapping) and isinstance(row.get("responses"), list):
        row = _without_empty(row, reading)
        if not row["responses"]:
            reading.too_few += 1
            return None
    group = read_group(row, source, columns)
    beside = _beside(row if columns is None else {}, source, len(group.responses))
    finished: list[bool] = beside["finished"] or [True] * len(group.responses)
    models = beside["models"]
    first = {response: number for number, response in reversed(list(enumerate(group.responses)))}
    keep = [i for i in sorted(first.values()) if finished[i] or not drop_cut]
    reading.repeated += len(group.responses) - len(first)
    reading.cut += sum(not finished[i] for i in first.values())
    if len(keep) < 2:
        reading.too_few += 1
        return None
    return Candidates(
        tuple(Answer(group.prompt, group.responses[i], NoTokens(), NoTokens(), bool(finished[i])) for i in keep),
        None if group.scores is None else tuple(group.scores[i] for i in keep),
        None if models is None else tuple(str(models[i]) for i in keep),
    )


def _without_empty(row: Mapping[str, Any], reading: Reading) -> dict[str, Any]:
    """The row without the responses that have no text, which data for training refuse, and without what stands beside them."""
    responses = row["responses"]
    keep = [i for i, response in enumerate(responses) if not isinstance(response, str) or response.strip()]
    reading.empty += len(responses) - len(keep)
    kept = dict(row)
    for column in ("responses", "scores", "ranking", *BESIDE):
        if isinstance(values := row.get(column), list) and len(values) == len(responses):
            kept[column] = [values[i] for i in keep]
    return kept


def _beside(row: object, source: str, number: int) -> dict[str, list[Any] | None]:
    """The columns that have one value for each response."""
    found: dict[str, list[Any] | None] = {}
    for column in BESIDE:
        values = row.get(column) if isinstance(row, Mapping) else None
        if values is not None and (not isinstance(values, list) or len(values) != number):
            raise RowError(f"{source}, column {column!r}: expected {number} values, one for each response.")
        found[column] = values
    return found
