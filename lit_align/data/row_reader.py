"""The values of a row, each checked as it is taken: where "malformed" is told apart from "fine"."""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Mapping
from typing import TypeGuard

from lit_align.data.spans import words
from lit_align.errors import UserError
from lit_align.groups import Message, Span, Text

Row = Mapping[str, object]

ROLES = ("system", "user", "assistant", "tool")
FROM_ROLES = {"system": "system", "human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant"}
"""What ShareGPT's `from` calls the roles."""


LARGEST = 3.4e38
"""What float32, in which the numbers of a batch are, can hold."""


class RowError(UserError):
    """A row that cannot be used. The message names file, row and column, and says what was expected there."""


class Cell(str):
    """A value of a file in which there is only text, such as CSV: text, or JSON where something else is expected."""

    __slots__ = ()


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
        return RowError(f"{self.source}, column {column!r}: expected {expected}, found {describe(found)}.")

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
        value = self._value(column)
        if not isinstance(value, list) or not value:
            raise self.error(column, "a list of chat turns", value)
        return [self._turn(column, turn) for turn in value]

    def chat(self, column: str) -> tuple[list[Message], str]:
        """A whole chat, as the turns before the assistant's last one and the content of that one."""
        turns = self.turns(column)
        if len(turns) < 2 or turns[-1]["role"] != "assistant":
            raise self.error(column, "at least two chat turns, the last one the assistant's", self.row[column])
        return turns[:-1], self._text(column, turns[-1]["content"])

    def led(self, prompt: Text) -> Text:
        """The prompt behind the system prompt that stands in the column `system`, where there is one; it is then a chat."""
        system = self.row.get("system")
        if not isinstance(system, str | None):
            raise self.error("system", "a text", system)
        if system is None or not system.strip():
            return prompt
        turns = [Message(role="user", content=prompt)] if isinstance(prompt, str) else prompt
        if turns[0]["role"] == "system":
            raise RowError(
                f"{self.source}: has a system prompt in the column 'system' and begins its turns with another; keep one, or "
                "leave the column out with data.columns."
            )
        return [Message(role="system", content=self._text("system", system)), *turns]

    def history(self) -> list[Message]:
        """The turns before the last question, of an optional list of [question, answer]; none where it is empty."""
        value = self._value("history") if self.has("history") else []
        if value == "":
            return []
        if not isinstance(value, list):
            raise self.error("history", "a list of [question, answer]", value)
        return [turn for pair in value for turn in self._exchange(pair)]

    def response(self, column: str, prompt: Text) -> str:
        """A response to `prompt`: text, or one message of the assistant where the prompt is a chat."""
        return self._response(column, self.row[column], prompt)

    def responses(self, column: str, prompt: Text) -> tuple[str, ...]:
        """A list of responses, at least one."""
        value = self._value(column)
        if not isinstance(value, list) or not value:
            raise self.error(column, "a list of responses", value)
        return tuple(self._response(column, item, prompt) for item in value)

    def number(self, column: str) -> float:
        """A finite number."""
        return self._number(column, self._value(column))

    def numbers(self, column: str, count: int) -> tuple[float, ...]:
        """One finite number for each of `count` responses."""
        value = self._value(column)
        if not isinstance(value, list) or len(value) != count:
            raise self.error(column, f"{count} numbers, one for each response", value)
        return tuple(self._number(column, item) for item in value)

    def labels(self, column: str) -> tuple[bool, ...] | None:
        """An optional true or false, or 1 or 0 for them, as the labels of the row's only response."""
        if not self.has(column):
            return None
        value = self._value(column)
        if not (isinstance(value, bool) or _is_whole(value, 0, 1)):
            raise self.error(column, "true or false, or 1 or 0", value)
        return (bool(value),)

    def position(self, column: str, text: str) -> int:
        """Where in a text something ends, in characters; at its end where the column is empty."""
        value = self._value(column) if self.has(column) else len(text)
        if not _is_whole(value, 1, len(text)):
            raise self.error(column, f"a position in the {len(text)} characters of the text, from 1 on", value)
        return int(value)

    def weights(self, column: str, response: str) -> tuple[Span, ...]:
        """What parts of a response weigh; nothing where the column is not there.

        Given as a number for each word (what whitespace parts), or as {start, end, weight} for stretches of characters.
        """
        return self._weights(column, self._value(column), response) if self.has(column) else ()

    def weights_of_each(self, column: str, responses: tuple[str, ...]) -> tuple[tuple[Span, ...], ...]:
        """As `weights`, one list for each of several responses."""
        value = self._value(column)
        if not isinstance(value, list) or len(value) != len(responses):
            raise self.error(column, f"a list of weights for each of the {len(responses)} responses", value)
        return tuple(self._weights(column, item, text) for item, text in zip(value, responses, strict=True))

    def _value(self, column: str) -> object:
        """The value of a column that should hold no text."""
        value = self.row[column]
        if not isinstance(value, Cell):
            return value
        try:
            # True and False are how Python and pandas write them.
            return json.loads(value.lower() if value.lower() in ("true", "false") else value)
        except ValueError:
            return value

    def _weights(self, column: str, value: object, response: str) -> tuple[Span, ...]:
        places = words(response)
        if isinstance(value, list) and value and isinstance(value[0], Mapping):
            return self._spans(column, value, response)
        if not isinstance(value, list) or len(value) != len(places):
            expected = f"{len(places)} weights, one for each word of the response, or a list of {{start, end, weight}}"
            raise self.error(column, expected, value)
        return tuple(Span(*place, self._weight(column, item)) for place, item in zip(places, value, strict=True))

    def _spans(self, column: str, value: list[object], response: str) -> tuple[Span, ...]:
        spans: list[Span] = []
        for item in value:
            if not isinstance(item, Mapping) or set(item) != {"start", "end", "weight"}:
                raise self.error(column, "stretches of the form {start, end, weight}", item)
            start, end = item["start"], item["end"]
            earliest = spans[-1].end if spans else 0
            if not _is_whole(start, earliest, len(response) - 1) or not _is_whole(end, start + 1, len(response)):
                expected = f"stretches in order, within the {len(response)} characters of the response"
                raise self.error(column, expected, (start, end))
            spans.append(Span(start, end, self._weight(column, item["weight"])))
        return tuple(spans)

    def _weight(self, column: str, value: object) -> float:
        weight = self._number(column, value)
        if weight < 0:
            raise self.error(column, "weights that are not negative", value)
        return weight

    def _text(self, column: str, value: object) -> str:
        if not isinstance(value, str) or not value.strip():
            raise self.error(column, "a text that is not empty", value)
        if not _is_unicode(value):
            raise self.error(column, "text in Unicode, without halves of characters", value)
        return str(value)

    def _number(self, column: str, value: object) -> float:
        try:
            number = float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else math.nan
        except OverflowError:  # JSON's whole numbers have no end
            number = math.inf
        if not abs(number) <= LARGEST:
            raise self.error(column, "a finite number", value)
        return number

    def _turn(self, column: str, value: object) -> Message:
        if not isinstance(value, Mapping) or not ({"role", "content"} <= set(value) or {"from", "value"} <= set(value)):
            raise self.error(column, "chat turns of the form {role, content} or {from, value}", value)
        if "role" in value:
            role, content, known = value["role"], value["content"], {name: name for name in ROLES}
        else:
            role, content, known = value["from"], value["value"], FROM_ROLES
        if not isinstance(role, str) or role not in known:
            raise self.error(column, f"a role out of {', '.join(known)}", role)
        # An empty system turn is how many data sets say that there is none to speak of.
        if not isinstance(content, str) or not (content.strip() or role == "system") or not _is_unicode(content):
            raise self.error(column, f"text as the content of the {role}'s turn", content)
        return Message(role=known[role], content=content)

    def _exchange(self, pair: object) -> tuple[Message, Message]:
        if not isinstance(pair, list) or len(pair) != 2:
            raise self.error("history", "a list of [question, answer]", pair)
        question, answer = (self._text("history", text) for text in pair)
        return Message(role="user", content=question), Message(role="assistant", content=answer)

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


def delimiter_hint(columns: Collection[str]) -> str:
    """What a message adds where the only column of a CSV file reads like several; nothing elsewhere."""
    (only,) = columns if len(columns) == 1 else ("",)
    for mark, name in ((";", "';'"), ("\t", "a tab")):
        if mark in only:
            return f" The delimiter seems to be {name}, and CSV is read with commas: write the file with commas."
    return ""


def _is_unicode(text: str) -> bool:
    """Whether a text can be encoded: JSON may name halves of characters, which no tokenizer takes."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _is_whole(value: object, low: int, high: int) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool) and low <= value <= high


def describe(value: object) -> str:
    """What a value is, in a few words for an error message."""
    if value is None:
        return "nothing"
    if isinstance(value, str):
        return f"the text {value[:40]!r}" + ("..." if len(value) > 40 else "") if value.strip() else "an empty text"
    if isinstance(value, list):
        return f"a list of {len(value)}"
    if isinstance(value, Mapping):
        return f"an object with {', '.join(map(str, value)) or 'nothing'}"
    return f"{value!r} ({type(value).__name__})"
