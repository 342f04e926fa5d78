"""Which rows are understood, and how the others are refused."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from lit_align.data.row_reader import Cell, RowError
from lit_align.data.schema import find_schema, read_group
from lit_align.groups import Group, Message, Span

USER: Message = {"role": "user", "content": "why?"}
SYSTEM: Message = {"role": "system", "content": ""}
BRIEF: Message = {"role": "system", "content": "be brief"}
YES: Message = {"role": "assistant", "content": "yes"}
NO: Message = {"role": "assistant", "content": "no"}
HH = "\n\nHuman: hi\n\nAssistant: hello\n\nHuman: why?\n\nAssistant:"

ROWS: list[tuple[dict[str, Any], Group]] = [
    ({"prompt": "p", "chosen": "c", "rejected": "r"}, Group("p", ("c", "r"), (1.0, 0.0))),
    ({"prompt": "p", "chosen": "c", "rejected": "r", "margin": 2}, Group("p", ("c", "r"), (1.0, 0.0), margin=2.0)),
    (
        {"prompt": "p", "chosen": "c", "rejected": "r", "score_chosen": 9, "score_rejected": 1, "margin": None},
        Group("p", ("c", "r"), (1.0, 0.0)),
    ),
    ({"prompt": [SYSTEM, USER], "chosen": [YES], "rejected": "no"}, Group([SYSTEM, USER], ("yes", "no"), (1.0, 0.0))),
    ({"chosen": [USER, YES], "rejected": [USER, NO]}, Group([USER], ("yes", "no"), (1.0, 0.0))),
    (
        {"prompt": "why?", "chosen": [USER, YES], "rejected": [USER, NO], "messages": [USER, YES]},
        Group([USER], ("yes", "no"), (1.0, 0.0)),
    ),
    ({"chosen": HH + " yes", "rejected": HH + " no"}, Group(HH, (" yes", " no"), (1.0, 0.0))),
    (
        {
            "conversations": [{"from": "human", "value": "why?"}],
            "chosen": {"from": "gpt", "value": "yes"},
            "rejected": {"from": "gpt", "value": "no"},
        },
        Group([USER], ("yes", "no"), (1.0, 0.0)),
    ),
    (
        {"prompt": "p", "responses": ["x", "y", "z"], "scores": [0.5, -1, 2]},
        Group("p", ("x", "y", "z"), (0.5, -1.0, 2.0)),
    ),
    (
        {"prompt": [USER], "responses": [[YES], "no", "hm"], "ranking": [1, 3, 1]},
        Group([USER], ("yes", "no", "hm"), (-1.0, -3.0, -1.0)),
    ),
    (
        {
            "instruction": "why?",
            "completions": [
                {"response": "x", "fine-grained_score": 4.25, "overall_score": 80},
                {"response": "y", "fine-grained_score": 3.0, "overall_score": 9},
            ],
        },
        Group([USER], ("x", "y"), (4.25, 3.0)),
    ),
    ({"prompt": "p", "completion": "c"}, Group("p", ("c",))),
    ({"prompt": "p", "completion": "c", "label": False}, Group("p", ("c",), labels=(False,))),
    ({"prompt": "p", "completion": "c", "label": 1}, Group("p", ("c",), labels=(True,))),
    ({"prompt": "p", "response": "c", "label": 0}, Group("p", ("c",), labels=(False,))),
    ({"prompt": "p", "response": "c", "label": Cell("1")}, Group("p", ("c",), labels=(True,))),
    ({"messages": [USER, NO, USER, YES]}, Group([USER, NO, USER], ("yes",))),
    ({"messages": [USER, YES], "label": True}, Group([USER], ("yes",), labels=(True,))),
    (
        {"conversations": [{"from": "human", "value": "why?"}, {"from": "gpt", "value": "yes"}]},
        Group([USER], ("yes",)),
    ),
    (
        {"instruction": "add", "input": "1 2", "output": "3"},
        Group([{"role": "user", "content": "add\n1 2"}], ("3",)),
    ),
    (
        {"conversations": [{"from": "human", "value": "why?"}, {"from": "gpt", "value": "yes"}], "system": "be brief"},
        Group([BRIEF, USER], ("yes",)),
    ),
    ({"messages": [USER, YES], "system": "be brief", "label": True}, Group([BRIEF, USER], ("yes",), labels=(True,))),
    ({"messages": [SYSTEM, USER, YES], "system": " "}, Group([SYSTEM, USER], ("yes",))),
    (
        {"conversations": [USER], "chosen": YES, "rejected": NO, "system": "be brief"},
        Group([BRIEF, USER], ("yes", "no"), (1.0, 0.0)),
    ),
    (
        {"conversations": "why?", "chosen": "yes", "rejected": "no", "system": "be brief"},
        Group([BRIEF, USER], ("yes", "no"), (1.0, 0.0)),
    ),
    (
        {"instruction": "why?", "output": "yes", "system": "be brief", "history": [["why?", "no"], ["why?", "yes"]]},
        Group([BRIEF, USER, NO, USER, YES, USER], ("yes",)),
    ),
    (
        {"instruction": "why?", "output": "yes", "system": Cell("be brief"), "history": Cell('[["why?", "no"]]')},
        Group([BRIEF, USER, NO, USER], ("yes",)),
    ),
    ({"instruction": "why?", "output": "yes", "system": None, "history": None}, Group([USER], ("yes",))),
    ({"instruction": "why?", "output": "yes", "system": "", "history": []}, Group([USER], ("yes",))),
    ({"instruction": "why?", "output": "yes", "history": ""}, Group([USER], ("yes",))),
    ({"instruction": "add", "input": "", "output": "3"}, Group([{"role": "user", "content": "add"}], ("3",))),
    (
        {"prompt": "p", "chosen": "c d", "rejected": "r", "chosen_weights": [0, 2.5], "rejected_weights": None},
        Group("p", ("c d", "r"), (1.0, 0.0), weights=((Span(0, 1, 0.0), Span(1, 3, 2.5)), ())),
    ),
    (
        {"prompt": "p", "completion": "one two", "weights": [{"start": 1, "end": 4, "weight": 0.5}]},
        Group("p", ("one two",), weights=((Span(1, 4, 0.5),),)),
    ),
    (
        {
            "prompt": "p",
            "responses": ["x", "y"],
            "scores": [1, 2],
            "weights": [[3], [{"start": 0, "end": 1, "weight": 0}]],
        },
        Group("p", ("x", "y"), (1.0, 2.0), weights=((Span(0, 1, 3.0),), (Span(0, 1, 0.0),))),
    ),
    (
        {"prompt": "p", "responses": ["x", "y"], "ranking": [2, 1], "weights": [[3], [1]]},
        Group("p", ("x", "y"), (-2.0, -1.0), weights=((Span(0, 1, 3.0),), (Span(0, 1, 1.0),))),
    ),
    ({"prompt": "p", "response": "x", "edited": "y"}, Group("p", ("y", "x"), (1.0, 0.0), edited=True)),
    ({"prompt": [USER], "response": "x", "edited": "x"}, Group([USER], ("x", "x"), (0.0, 0.0), edited=True)),
    ({"prompt": "p", "response": "x", "label": False}, Group("p", ("x",), labels=(False,))),
    ({"prompt": "p", "response": "x"}, Group("p", ("x",))),
    (
        {"prompt": [USER], "response": [YES], "weights": [2]},
        Group([USER], ("yes",), weights=((Span(0, 3, 2.0),),)),
    ),
    ({"prompt": "p", "response": "x", "completion": "c"}, Group("p", ("c",))),
    ({"prompt": "p", "response": "x", "messages": [USER, YES]}, Group([USER], ("yes",))),
    ({"prompt": "p", "response": "x", "text": "once upon a time"}, Group("", ("once upon a time",))),
    ({"text": "once upon a time"}, Group("", ("once upon a time",))),
    ({"prompt": "p", "prefix": "so far", "stop": 4}, Group("p", ("so f",), labels=(False,), finished=False)),
    ({"prompt": [USER], "prefix": "so far", "stop": None}, Group([USER], ("so far",), labels=(False,), finished=False)),
]


@pytest.mark.parametrize(("row", "group"), ROWS, ids=lambda value: "+".join(value) if isinstance(value, dict) else "")
def test_rows_are_recognised_by_their_columns(row: dict[str, Any], group: Group) -> None:
    assert read_group(row, "") == group


BAD_ROWS: list[tuple[dict[str, Any], str, str]] = [
    (
        {"prompt": "p", "chosen": "", "rejected": "r"},
        "chosen",
        "a text that is not empty, found an empty text",
    ),
    ({"prompt": None, "chosen": "c", "rejected": "r"}, "prompt", "found nothing"),
    ({"prompt": "p", "chosen": 3, "rejected": "r"}, "chosen", r"found 3 \(int\)"),
    ({"prompt": "p", "chosen": [YES], "rejected": "r"}, "chosen", "a text, because the prompt is one and no chat"),
    ({"prompt": [], "chosen": "c", "rejected": "r"}, "prompt", "a list of chat turns, found a list of 0"),
    ({"prompt": [USER, YES], "chosen": "c", "rejected": "r"}, "prompt", "ends before the assistant's turn"),
    ({"prompt": [USER], "chosen": [USER], "rejected": "r"}, "chosen", "one message of the assistant"),
    ({"prompt": ["hi"], "chosen": "c", "rejected": "r"}, "prompt", "{role, content}"),
    (
        {"prompt": [{"role": "bot", "content": "x"}], "chosen": "c", "rejected": "r"},
        "prompt",
        "role out of system, .*'bot'",
    ),
    ({"prompt": [{"role": "user", "content": " "}], "chosen": "c", "rejected": "r"}, "prompt", "the user's turn"),
    ({"prompt": "p", "chosen": "c", "rejected": "r", "margin": "big"}, "margin", "a finite number"),
    (
        {"prompt": "other", "chosen": [USER, YES], "rejected": [USER, NO]},
        "chosen",
        "with the prompt as one of its turns",
    ),
    ({"prompt": [SYSTEM], "chosen": [USER, YES], "rejected": [USER, NO]}, "chosen", "the turns of the prompt"),
    ({"chosen": [USER, YES], "rejected": [SYSTEM, USER, NO]}, "rejected", "the same turns as in 'chosen'"),
    ({"chosen": "yes", "rejected": "no"}, "chosen", "a dialogue"),
    ({"chosen": HH, "rejected": HH + " no"}, "chosen", "a dialogue"),
    ({"chosen": HH + " yes", "rejected": "\n\nAssistant: no"}, "rejected", "the same dialogue"),
    ({"prompt": "p", "responses": "x", "scores": [1]}, "responses", "a list of responses"),
    (
        {"prompt": "p", "responses": ["x", "y"], "scores": [1]},
        "scores",
        "2 numbers, one for each response, found a list of 1",
    ),
    ({"prompt": "p", "responses": ["x", "y"], "scores": [1, math.nan]}, "scores", "a finite number, found nan"),
    ({"prompt": "p", "responses": ["x", "y"], "scores": [1, True]}, "scores", r"found True \(bool\)"),
    ({"prompt": "p", "responses": ["x", "y"], "ranking": [0, 1]}, "ranking", "1 the best"),
    ({"prompt": "p", "responses": ["x", "y"], "ranking": [1, 1.5]}, "ranking", "whole numbers"),
    ({"prompt": "p", "completion": "c", "label": 2}, "label", r"true or false, or 1 or 0, found 2 \(int\)"),
    ({"prompt": "p", "completion": "c", "label": -1}, "label", "true or false"),
    ({"prompt": "p", "completion": "c", "label": 1.0}, "label", "true or false"),
    ({"prompt": "p", "completion": "c", "label": "1"}, "label", "true or false"),
    ({"prompt": "p", "response": "c", "label": Cell("1.0")}, "label", "true or false"),
    ({"messages": [USER]}, "messages", "at least two chat turns"),
    ({"messages": [USER], "system": "be brief"}, "messages", "at least two chat turns"),
    ({"messages": [USER, YES], "system": ["be brief"]}, "system", "a text, found a list of 1"),
    ({"instruction": "i", "output": "o", "system": 0}, "system", r"a text, found 0 \(int\)"),
    ({"instruction": "i", "output": "o", "history": "hi"}, "history", r"\[question, answer\], found the text 'hi'"),
    ({"instruction": "i", "output": "o", "history": [["q"]]}, "history", r"\[question, answer\], found a list of 1"),
    ({"instruction": "i", "output": "o", "history": ["qa"]}, "history", r"\[question, answer\], found the text 'qa'"),
    ({"instruction": "i", "output": "o", "history": [["q", ""]]}, "history", "not empty, found an empty text"),
    ({"instruction": "i", "output": "o", "history": [["q", 3]]}, "history", r"found 3 \(int\)"),
    ({"messages": [YES, USER]}, "messages", "the last one the assistant's"),
    ({"instruction": "i", "completions": ["x"]}, "completions", "fine-grained_score"),
    ({"prompt": "p", "chosen": "c", "rejected": "r", "margin": -1}, "margin", "a margin of 0 or more"),
    ({"prompt": "p", "completion": "c d", "weights": [1]}, "weights", "2 weights, one for each word"),
    ({"prompt": "p", "completion": "c d", "weights": [1, -1]}, "weights", "weights that are not negative"),
    ({"prompt": "p", "completion": "c d", "weights": [1, "x"]}, "weights", "a finite number"),
    ({"prompt": "p", "completion": "c d", "weights": [{"start": 0, "weight": 1}]}, "weights", "{start, end, weight}"),
    (
        {"prompt": "p", "completion": "c d", "weights": [{"start": 2, "end": 4, "weight": 1}]},
        "weights",
        r"within the 3 characters of the response, found \(2, 4\)",
    ),
    (
        {
            "prompt": "p",
            "completion": "c d",
            "weights": [{"start": 0, "end": 2, "weight": 1}, {"start": 1, "end": 3, "weight": 1}],
        },
        "weights",
        "stretches in order",
    ),
    (
        {"prompt": "p", "responses": ["x"], "scores": [1], "weights": [[1], [1]]},
        "weights",
        "a list of weights for each",
    ),
    ({"prompt": "p", "response": "x", "edited": ""}, "edited", "a text that is not empty"),
    ({"prompt": "p", "response": ""}, "response", "a text that is not empty"),
    ({"prompt": "p", "response": "x", "label": None}, "label", "true or false"),
    ({"prompt": "p", "prefix": "so far", "stop": 7}, "stop", "a position in the 6 characters"),
    ({"prompt": "p", "prefix": "so far", "stop": True}, "stop", "a position in the 6 characters"),
    ({"prompt": "p", "prefix": "  far", "stop": 2}, "stop", "after some of the text"),
]


@pytest.mark.parametrize(("row", "column", "message"), BAD_ROWS)
def test_bad_values_are_refused_by_row_and_column(row: dict[str, Any], column: str, message: str) -> None:
    with pytest.raises(RowError, match=rf"^rows\.jsonl, row 7, column '{column}': expected .*{message}"):
        read_group(row, "rows.jsonl, row 7")


def test_unknown_columns_are_refused_with_those_that_are_known() -> None:
    with pytest.raises(
        RowError, match=r"row 7: the columns question, answer make no known kind .*; prompt \+ completion"
    ):
        read_group({"question": "q", "answer": "a"}, "row 7")
    with pytest.raises(RowError, match="row 7: expected an object with columns, found a list of 2"):
        read_group(["q", "a"], "row 7")


@pytest.mark.parametrize("label", [True, False])
def test_a_number_as_label_is_the_same_row(label: bool) -> None:
    numbered, said = ({"messages": [USER, YES], "label": value} for value in (int(label), label))
    # As hashed for the fingerprint, in which 1 would not be True.
    assert repr(read_group(numbered, "")) == repr(read_group(said, ""))


@pytest.mark.parametrize("turns", [[BRIEF, USER, YES], [SYSTEM, USER, YES]])
def test_two_system_prompts_are_refused(turns: list[Message]) -> None:
    with pytest.raises(RowError, match="row 7: has a system prompt in the column 'system' and begins its turns with"):
        read_group({"messages": turns, "system": "be brief"}, "row 7")


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ("prompt chosen", "Nearest is preference: it has 'prompt' and 'chosen' but no 'rejected'."),
        ("id chosen", "Nearest is preference of whole chats: it has 'chosen' but no 'rejected'."),
        ("chosen output", "Nearest is preference of whole chats: it has 'chosen' but no 'rejected'."),
        ("prefix", "Nearest is early stop: it has 'prefix' but no 'prompt' and no 'stop'."),
        ("instruction input", "Nearest is instruction: it has 'instruction' and 'input' but no 'output'."),
        (
            "prompt label",
            "Nearest are critique, completion: it has 'prompt' and 'label' but no 'response' or 'completion'.",
        ),
        ("answer label", "Nearest is critique: it has 'label' but no 'prompt' and no 'response'."),
    ],
)
def test_the_nearest_kind_comes_first_and_what_it_lacks(columns: str, message: str) -> None:
    with pytest.raises(RowError) as error:
        read_group(dict.fromkeys(columns.split(), "x"), "row 7")
    names = columns.replace(" ", ", ")
    begin = f"row 7: the columns {names} make no known kind of row. {message} Where yours go by other names, map them"
    assert str(error.value).startswith(begin)


@pytest.mark.parametrize("columns", ["question answer", "weights", "a;b"])
def test_no_kind_is_near_columns_of_none(columns: str) -> None:
    with pytest.raises(RowError, match=r"make no known kind of row\. Where yours go by other names, map them"):
        read_group(dict.fromkeys(columns.split(), "x"), "row 7")


def test_scores_and_a_ranking_together_are_refused() -> None:
    with pytest.raises(RowError, match="both 'scores' and 'ranking'"):
        read_group({"prompt": "p", "responses": ["x", "y"], "scores": [1, 2], "ranking": [1, 2]}, "row 7")


def test_a_column_map_names_columns_and_hides_the_others() -> None:
    row = {"question": "q", "answer": "a", "chosen": "c", "rejected": "r", "prompt": "p"}
    group = read_group(row, "", {"prompt": "question", "completion": "answer"})
    assert group == Group("q", ("a",))
    with pytest.raises(RowError, match=r"data\.columns names 'solution', the row has question, answer"):
        read_group(row, "", {"prompt": "question", "completion": "solution"})
    with pytest.raises(RowError, match=r"says what 'choosen' is, which no kind of row has; did you mean 'chosen'\?$"):
        read_group(row, "", {"prompt": "question", "choosen": "chosen"})
    with pytest.raises(
        RowError, match=r"'question' is, which no kind of row has\. A map is from our names to the row's\.$"
    ):
        read_group(row, "", {"question": "prompt", "answer": "completion"})


@pytest.mark.parametrize(
    ("name", "schema"),
    [
        ("dpo_en_demo.json", "preference after turns"),
        ("kto_en_demo.json", "chat"),
        ("alpaca_en_demo.json", "instruction"),
    ],
)
def test_real_rows_load_as_they_are(shared_data: Path, name: str, schema: str) -> None:
    rows = json.loads((shared_data / name).read_text())
    assert len(rows) == (999 if schema == "instruction" else 300)
    assert {find_schema(row, "")[0].name for row in rows} == {schema}
    groups = [read_group(row, f"row {number}") for number, row in enumerate(rows)]
    assert {len(group.responses) for group in groups} == {2 if "chosen" in rows[0] else 1}
    if "label" in rows[0]:
        assert [group.labels for group in groups] == [(row["label"],) for row in rows]
    else:
        assert all(group.labels is None for group in groups)
    if schema == "preference after turns":
        assert [group.responses for group in groups] == [
            (row["chosen"]["value"], row["rejected"]["value"]) for row in rows
        ]
