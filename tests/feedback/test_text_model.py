from __future__ import annotations

import time

import pytest

from lit_align.feedback import text_model
from lit_align.feedback.text_model import as_plain_text, with_progress
from lit_align.groups import Message


def test_a_question_as_plain_text() -> None:
    turns = [
        Message(role="user", content="this?"),
        Message(role="assistant", content="well"),
        Message(role="user", content="so"),
    ]
    assert as_plain_text(turns) == "this?\n\nwell\n\nso"
    assert as_plain_text(turns[:1]) == "this?"


def test_what_takes_long_says_how_far_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    clock = iter([0.0, 4.0, 11.0, 11.0, 12.0])
    monkeypatch.setattr(text_model, "rank_zero_info", said.append)
    monkeypatch.setattr(time, "monotonic", lambda: next(clock))
    assert list(with_progress("abc", 3, "Answers")) == ["a", "b", "c"]
    assert said == ["Answers: 2 of 3"]
