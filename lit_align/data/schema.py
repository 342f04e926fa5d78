"""Rows to `Group`s: which columns make which kind of row. A new kind is one function and one entry of `SCHEMAS`."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import cast

from lit_align.data.row_reader import Row, RowError, RowReader, describe
from lit_align.groups import Group, Message, Text


@dataclass(frozen=True)
class Schema:
    """One kind of row.

    Args:
        required: Columns that make a row of this kind.
        read: Makes the group, without its `source`.
        optional: Columns that are read where they are there.
    """

    required: tuple[str, ...]
    read: Callable[[RowReader], Group]
    optional: tuple[str, ...] = ()

    def __str__(self) -> str:
        return " + ".join([*self.required, *(f"({name})" for name in self.optional)])


def _preference(row: RowReader) -> Group:
    if isinstance(chosen := row.row["chosen"], list) and len(chosen) > 1:
        return _whole_chats(row)
    return _compared(row, row.prompt("prompt"))


def _turns_preference(row: RowReader) -> Group:
    return _compared(row, row.prompt("conversations"))


def _compared(row: RowReader, prompt: Text) -> Group:
    return _preferred(row, prompt, row.response("chosen", prompt), row.response("rejected", prompt))


def _preferred(row: RowReader, prompt: Text, chosen: str, rejected: str) -> Group:
    margin = row.number("margin") if row.has("margin") else 0.0
    return Group(prompt, (chosen, rejected), scores=(1.0, 0.0), margin=margin)


def _implicit_preference(row: RowReader) -> Group:
    return _whole_chats(row) if isinstance(row.row["chosen"], list) else _dialogues(row)


def _whole_chats(row: RowReader) -> Group:
    prompt, chosen = row.chat("chosen")
    other, rejected = row.chat("rejected")
    if other != prompt:
        raise row.error("rejected", "the same turns as in 'chosen' up to the last one", row.row["rejected"])
    stated = row.row.get("prompt")
    if isinstance(stated, list) and row.turns("prompt") != prompt:
        raise row.error("chosen", "the turns of the prompt and one more", row.row["chosen"])
    if isinstance(stated, str) and all(turn["content"] != stated for turn in prompt):
        raise row.error("chosen", "a chat with the prompt as one of its turns", row.row["chosen"])
    return _preferred(row, prompt, chosen, rejected)


def _dialogues(row: RowReader) -> Group:
    """Anthropic HH: each text is the whole dialogue; what follows the last "Assistant:" is the response."""
    split: dict[str, tuple[str, str]] = {}
    for column in ("chosen", "rejected"):
        found = re.fullmatch(r"(.*\n\nAssistant:)(.*)", row.text(column), re.DOTALL)
        if found is None or not found[2].strip():
            raise row.error(column, 'a dialogue that ends with "\\n\\nAssistant:" and a response', row.row[column])
        split[column] = (found[1], found[2])
    if split["chosen"][0] != split["rejected"][0]:
        raise row.error("rejected", "the same dialogue as in 'chosen' up to the response", row.row["rejected"])
    return _preferred(row, split["chosen"][0], split["chosen"][1], split["rejected"][1])


def _scored(row: RowReader) -> Group:
    if row.has("ranking"):
        raise RowError(f"{row.source}: has both 'scores' and 'ranking'; say which counts with data.columns.")
    prompt = row.prompt("prompt")
    responses = row.responses("responses", prompt)
    return Group(prompt, responses, scores=row.numbers("scores", len(responses)))


def _ranked(row: RowReader) -> Group:
    prompt = row.prompt("prompt")
    responses = row.responses("responses", prompt)
    places = row.numbers("ranking", len(responses))
    if any(place < 1 or place != int(place) for place in places):
        raise row.error("ranking", "places of the responses, whole numbers with 1 the best", row.row["ranking"])
    return Group(prompt, responses, scores=tuple(-place for place in places))


def _ultrafeedback(row: RowReader) -> Group:
    prompt: list[Message] = [Message(role="user", content=row.text("instruction"))]
    completions = row.row["completions"]
    if not isinstance(completions, list) or not all(isinstance(item, Mapping) for item in completions):
        raise row.error("completions", "a list of {response, fine-grained_score}", completions)
    parts: dict[str, list[object]] = {
        name: [item.get(name) for item in completions] for name in ("response", "fine-grained_score")
    }
    items = RowReader(parts, row.source)
    responses = items.responses("response", prompt)
    return Group(prompt, responses, scores=items.numbers("fine-grained_score", len(responses)))


def _completion(row: RowReader) -> Group:
    prompt = row.prompt("prompt")
    return Group(prompt, (row.response("completion", prompt),), labels=row.labels("label"))


def _chat(column: str) -> Callable[[RowReader], Group]:
    def read(row: RowReader) -> Group:
        prompt, response = row.chat(column)
        return Group(prompt, (response,), labels=row.labels("label"))

    return read


def _instruction(row: RowReader) -> Group:
    parts = [row.text("instruction")] + ([row.text("input")] if row.row.get("input") else [])
    return Group([Message(role="user", content="\n".join(parts))], (row.text("output"),))


SCHEMAS = (
    Schema(("prompt", "chosen", "rejected"), _preference, ("margin",)),
    Schema(("conversations", "chosen", "rejected"), _turns_preference, ("margin",)),
    Schema(("chosen", "rejected"), _implicit_preference, ("margin",)),
    Schema(("prompt", "responses", "scores"), _scored),
    Schema(("prompt", "responses", "ranking"), _ranked),
    Schema(("instruction", "completions"), _ultrafeedback),
    Schema(("prompt", "completion"), _completion, ("label",)),
    Schema(("messages",), _chat("messages"), ("label",)),
    Schema(("conversations",), _chat("conversations"), ("label",)),
    Schema(("instruction", "output"), _instruction, ("input",)),
)
"""Every kind of row, the more particular first: a row is of the first kind whose columns it has."""


def read_group(row: object, source: str, columns: Mapping[str, str] | None = None) -> Group:
    """One row as a `Group`.

    Args:
        row: Column names to values.
        source: Where the row came from: "rows.jsonl, row 12".
        columns: For each column of a schema the column of the row that stands for it. Where it is given, the row's other
            columns do not exist.

    Raises:
        RowError: The columns fit no schema, or a value is not what its column should hold.
    """
    if not isinstance(row, Mapping):
        raise RowError(f"{source}: expected an object with columns, found {describe(row)}.")
    if columns is not None:
        if missing := [name for name in columns.values() if name not in row]:
            raise RowError(f"{source}: data.columns names {missing[0]!r}, the row has {', '.join(row)}.")
        row = {ours: row[theirs] for ours, theirs in columns.items()}
    for schema in SCHEMAS:
        if all(name in row for name in schema.required):
            group = schema.read(RowReader(cast("Row", row), source))
            return Group(group.prompt, group.responses, group.scores, group.labels, group.margin, source)
    known = "; ".join(map(str, SCHEMAS))
    raise RowError(
        f"{source}: the columns {', '.join(map(str, row)) or '(none)'} make no known kind of row. Known are: {known}. "
        "Where yours go by other names, map them with data.columns."
    )
