"""Rows to `Group`s: which columns make which kind of row. A new kind is one function and one entry of `SCHEMAS`."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import cast

from lit_align.data.row_reader import Cell, Row, RowError, RowReader, delimiter_hint, describe
from lit_align.groups import Group, Message, Text


@dataclass(frozen=True)
class Schema:
    """One kind of row.

    Args:
        name: What a row of this kind is called.
        required: Columns that make a row of this kind.
        read: Makes the group, without its `source`.
        optional: Columns that are read where they are there.
    """

    name: str
    required: tuple[str, ...]
    read: Callable[[RowReader], Group]
    optional: tuple[str, ...] = ()

    def __str__(self) -> str:
        return " + ".join(self.required)


def _preference(row: RowReader) -> Group:
    if isinstance(chosen := row.row["chosen"], list) and len(chosen) > 1:
        return _whole_chats(row)
    return _compared(row, row.prompt("prompt"))


def _turns_preference(row: RowReader) -> Group:
    return _compared(row, row.led(row.prompt("conversations")))


def _compared(row: RowReader, prompt: Text) -> Group:
    return _preferred(row, prompt, row.response("chosen", prompt), row.response("rejected", prompt))


def _preferred(row: RowReader, prompt: Text, chosen: str, rejected: str) -> Group:
    margin = row.number("margin") if row.has("margin") else 0.0
    if margin < 0:
        # It would ask for no more than that the better response not lose by much.
        raise row.error("margin", "a margin of 0 or more, by which the chosen response should win", margin)
    weights = None
    if row.has("chosen_weights") or row.has("rejected_weights"):
        weights = (row.weights("chosen_weights", chosen), row.weights("rejected_weights", rejected))
    return Group(prompt, (chosen, rejected), scores=(1.0, 0.0), margin=margin, weights=weights)


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
    weights = row.weights_of_each("weights", responses) if row.has("weights") else None
    return Group(prompt, responses, scores=row.numbers("scores", len(responses)), weights=weights)


def _ranked(row: RowReader) -> Group:
    prompt = row.prompt("prompt")
    responses = row.responses("responses", prompt)
    places = row.numbers("ranking", len(responses))
    if any(place < 1 or place != int(place) for place in places):
        raise row.error("ranking", "places of the responses, whole numbers with 1 the best", row.row["ranking"])
    weights = row.weights_of_each("weights", responses) if row.has("weights") else None
    return Group(prompt, responses, scores=tuple(-place for place in places), weights=weights)


def _responses(row: RowReader) -> Group:
    prompt = row.prompt("prompt")
    return Group(prompt, row.responses("responses", prompt))


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


def _single(row: RowReader, prompt: Text, response: str) -> Group:
    weights = (row.weights("weights", response),) if row.has("weights") else None
    return Group(prompt, (response,), labels=row.labels("label"), weights=weights)


def _completion(row: RowReader) -> Group:
    prompt = row.prompt("prompt")
    return _single(row, prompt, row.response("completion", prompt))


def _text(row: RowReader) -> Group:
    text = row.text("text")
    return _single(row, "", text)


def _critique(row: RowReader) -> Group:
    if not row.has("label"):
        raise row.error("label", "true or false, or 1 or 0", None)
    return _demonstration(row)


def _demonstration(row: RowReader) -> Group:
    prompt = row.prompt("prompt")
    return _single(row, prompt, row.response("response", prompt))


def _chat(column: str) -> Callable[[RowReader], Group]:
    def read(row: RowReader) -> Group:
        turns, response = row.chat(column)
        return _single(row, row.led(turns), response)

    return read


def _instruction(row: RowReader) -> Group:
    parts = [row.text("instruction")] + ([row.text("input")] if row.row.get("input") else [])
    turns = [*row.history(), Message(role="user", content="\n".join(parts))]
    return _single(row, row.led(turns), row.text("output"))


def _improvement(row: RowReader) -> Group:
    prompt = row.prompt("prompt")
    original, edited = row.response("response", prompt), row.response("edited", prompt)
    # Who leaves a response as it is prefers neither.
    scores = (1.0, 0.0) if edited != original else (0.0, 0.0)
    return Group(prompt, (edited, original), scores=scores, edited=True)


def _stop(row: RowReader) -> Group:
    prompt = row.prompt("prompt")
    prefix = row.response("prefix", prompt)
    read = prefix[: row.position("stop", prefix)]
    if not read.strip():
        raise row.error("stop", "a position after some of the text", row.row["stop"])
    return Group(prompt, (read,), labels=(False,), finished=False)


_PAIR = ("margin", "chosen_weights", "rejected_weights")
_SINGLE = ("label", "weights")

SCHEMAS = (
    Schema("preference", ("prompt", "chosen", "rejected"), _preference, _PAIR),
    Schema("preference after turns", ("conversations", "chosen", "rejected"), _turns_preference, ("system", *_PAIR)),
    Schema("preference of whole chats", ("chosen", "rejected"), _implicit_preference, _PAIR),
    Schema("scored responses", ("prompt", "responses", "scores"), _scored, ("weights",)),
    Schema("ranked responses", ("prompt", "responses", "ranking"), _ranked, ("weights",)),
    Schema("responses", ("prompt", "responses"), _responses),
    Schema("UltraFeedback", ("instruction", "completions"), _ultrafeedback),
    Schema("improvement", ("prompt", "response", "edited"), _improvement),
    Schema("critique", ("prompt", "response", "label"), _critique, ("weights",)),
    Schema("early stop", ("prompt", "prefix", "stop"), _stop),
    Schema("completion", ("prompt", "completion"), _completion, _SINGLE),
    Schema("chat", ("messages",), _chat("messages"), ("system", *_SINGLE)),
    Schema("chat", ("conversations",), _chat("conversations"), ("system", *_SINGLE)),
    Schema("instruction", ("instruction", "output"), _instruction, ("input", "history", "system", *_SINGLE)),
    Schema("text", ("text",), _text, ("weights",)),
    Schema("demonstration", ("prompt", "response"), _demonstration, ("weights",)),
)
"""Every kind of row, the more particular first: a row is of the first kind whose columns it has."""


def find_schema(row: object, source: str, columns: Mapping[str, str] | None = None) -> tuple[Schema, Row]:
    """The kind of a row, and the row with its columns under our names.

    Args:
        row: Column names to values.
        source: Where the row came from: "rows.jsonl, row 12".
        columns: For each column of a schema the column of the row that stands for it. Where it is given, the row's other
            columns do not exist.

    Raises:
        RowError: The columns fit no schema, or `columns` names one that no schema has.
    """
    if not isinstance(row, Mapping):
        raise RowError(f"{source}: expected an object with columns, found {describe(row)}.")
    if columns is not None:
        known_names = {name for schema in SCHEMAS for name in (*schema.required, *schema.optional)}
        if unknown := [name for name in columns if name not in known_names]:
            near = difflib.get_close_matches(unknown[0], known_names, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ". A map is from our names to the row's."
            raise RowError(f"{source}: data.columns says what {unknown[0]!r} is, which no kind of row has{hint}")
        if missing := [name for name in columns.values() if name not in row]:
            names = ", ".join(map(str, row))
            raise RowError(f"{source}: data.columns names {missing[0]!r}, the row has {names}.{_delimiter(row)}")
        row = {ours: row[theirs] for ours, theirs in columns.items()}
    for schema in SCHEMAS:
        if all(name in row for name in schema.required):
            return schema, cast("Row", row)
    what_to_do = _delimiter(row) or (
        f"{_nearest(row)} Where yours go by other names, map them with data.columns. Known are: "
        f"{'; '.join(map(str, SCHEMAS))}."
    )
    raise RowError(
        f"{source}: the columns {', '.join(map(str, row)) or '(none)'} make no known kind of row.{what_to_do}"
    )


def _delimiter(row: Row) -> str:
    """As `delimiter_hint`, for a row that is one of CSV."""
    return delimiter_hint(row) if all(isinstance(value, Cell | None) for value in row.values()) else ""


def _nearest(row: Row) -> str:
    """Which kinds a row comes nearest to, and what it lacks; nothing where it has no column that makes one."""
    # The fewer columns are missing the nearer, and then the more are there.
    ranked = sorted(
        (len(lacks), -len(has), place, has, lacks)
        for place, schema in enumerate(SCHEMAS)
        for has, lacks in [_parts(schema, row)]
        if len(lacks) < len(schema.required)
    )
    if not ranked:
        return ""
    missing, _, _, present, _ = ranked[0]
    near = [(SCHEMAS[place].name, lacks) for n, _, place, has, lacks in ranked if (n, has) == (missing, present)]
    names = ", ".join(name for name, _ in near)
    absent = " or ".join(" and no ".join(map(repr, lacks)) for _, lacks in near)
    return f" Nearest {'is' if len(near) == 1 else 'are'} {names}: it has {' and '.join(map(repr, present))} but no {absent}."


def _parts(schema: Schema, row: Row) -> tuple[list[str], list[str]]:
    """The columns of a kind that a row has, and those that it would need."""
    has = [name for name in (*schema.required, *schema.optional) if name in row]
    return has, [name for name in schema.required if name not in row]


def read_group(row: object, source: str, columns: Mapping[str, str] | None = None) -> Group:
    """One row as a `Group`; the arguments are those of `find_schema`.

    Raises:
        RowError: The columns fit no schema, or a value is not what its column should hold.
    """
    schema, ours = find_schema(row, source, columns)
    return replace(schema.read(RowReader(ours, source)), source=source)
