"""Rows to `Group`s: which columns make which kind of row. A new kind is one function and one entry of `SCHEMAS`."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import cast

from lit_align.errors import UserError
from lit_align.groups import Group, Message, Text

Row = Mapping[str, object]

ROLES = ("system", "user", "assistant", "tool")
FROM_ROLES = {"system": "system", "human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant"}
"""What ShareGPT's `from` calls the roles."""


class RowError(UserError):
    """A row that cannot be used. The message names file, row and column, and says what was expected there."""


class RowReader:
    """The values of one row by column, each checked as it is taken.

    Args:
        row: Column names to values; a column that holds None counts as empty.
        source: Where the row came from: "rows.jsonl, row 12".
    """

    def __init__(self, row: Row, source: str) -> None:
        self.row = row
        self.source = source

    def error(self, column: str, expected: str, found: object) -> RowError:
        """The complaint about one column; `found` is the offending value."""
        return RowError(f"{self.source}, column {column!r}: expected {expected}, found {_describe(found)}.")

    def has(self, column: str) -> bool:
        """Whether an optional column is there and holds something."""
        return self.row.get(column) is not None

    def text(self, column: str) -> str:
        """A text with something in it."""
        return self._text(column, self.row[column])

    def prompt(self, column: str) -> Text:
        """A text, or chat turns that do not end with the assistant's."""
        value = self.row[column]
        if not isinstance(value, list):
            return self._text(column, value)
        turns = self.turns(column)
        if turns[-1]["role"] == "assistant":
            raise self.error(column, "a prompt that ends before the assistant's turn", value)
        return turns

    def turns(self, column: str) -> list[Message]:
        """A list of chat turns, at least one."""
        value = self.row[column]
        if not isinstance(value, list) or not value:
            raise self.error(column, "a list of chat turns", value)
        return [self._turn(column, turn) for turn in value]

    def chat(self, column: str) -> tuple[list[Message], str]:
        """A whole chat, as the turns before the assistant's last one and the content of that one."""
        turns = self.turns(column)
        if len(turns) < 2 or turns[-1]["role"] != "assistant":
            raise self.error(column, "at least two chat turns, the last one the assistant's", self.row[column])
        return turns[:-1], self._text(column, turns[-1]["content"])

    def response(self, column: str, prompt: Text) -> str:
        """A response to `prompt`: text, or one message of the assistant where the prompt is a chat."""
        return self._response(column, self.row[column], prompt)

    def responses(self, column: str, prompt: Text) -> tuple[str, ...]:
        """A list of responses, at least one."""
        value = self.row[column]
        if not isinstance(value, list) or not value:
            raise self.error(column, "a list of responses", value)
        return tuple(self._response(column, item, prompt) for item in value)

    def number(self, column: str) -> float:
        """A finite number."""
        return self._number(column, self.row[column])

    def numbers(self, column: str, count: int) -> tuple[float, ...]:
        """One finite number for each of `count` responses."""
        value = self.row[column]
        if not isinstance(value, list) or len(value) != count:
            raise self.error(column, f"{count} numbers, one for each response", value)
        return tuple(self._number(column, item) for item in value)

    def labels(self, column: str) -> tuple[bool, ...] | None:
        """An optional true or false, as the labels of the row's only response."""
        if not self.has(column):
            return None
        value = self.row[column]
        if not isinstance(value, bool):
            raise self.error(column, "true or false", value)
        return (value,)

    def _text(self, column: str, value: object) -> str:
        if not isinstance(value, str) or not value.strip():
            raise self.error(column, "a text that is not empty", value)
        return value

    def _number(self, column: str, value: object) -> float:
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
            raise self.error(column, "a finite number", value)
        return float(value)

    def _turn(self, column: str, value: object) -> Message:
        if not isinstance(value, Mapping) or not ({"role", "content"} <= set(value) or {"from", "value"} <= set(value)):
            raise self.error(column, "chat turns of the form {role, content} or {from, value}", value)
        if "role" in value:
            role, content, known = value["role"], value["content"], {name: name for name in ROLES}
        else:
            role, content, known = value["from"], value["value"], FROM_ROLES
        if role not in known:
            raise self.error(column, f"a role out of {', '.join(known)}", role)
        # An empty system turn is how many data sets say that there is none to speak of.
        if not isinstance(content, str) or not (content.strip() or role == "system"):
            raise self.error(column, f"text as the content of the {role}'s turn", content)
        return Message(role=known[role], content=content)

    def _response(self, column: str, value: object, prompt: Text) -> str:
        if isinstance(value, Mapping):
            value = [value]
        if not isinstance(value, list):
            return self._text(column, value)
        if isinstance(prompt, str):
            raise self.error(column, "a text, because the prompt is one and no chat", value)
        if len(value) != 1 or (turn := self._turn(column, value[0]))["role"] != "assistant":
            raise self.error(column, "a text or one message of the assistant", value)
        return self._text(column, turn["content"])


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
        raise RowError(f"{source}: expected an object with columns, found {_describe(row)}.")
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


def _describe(value: object) -> str:
    if value is None:
        return "nothing"
    if isinstance(value, str):
        return f"the text {value[:40]!r}" + ("..." if len(value) > 40 else "") if value.strip() else "an empty text"
    if isinstance(value, (list, tuple)):
        return f"a list of {len(value)}"
    if isinstance(value, Mapping):
        return f"an object with {', '.join(map(str, value)) or 'nothing'}"
    return f"{value!r} ({type(value).__name__})"
