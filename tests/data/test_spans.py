"""Weights of words, edits and tokens, by hand."""

from __future__ import annotations

import pytest

from lit_align.data.spans import token_weights, unchanged_spans, words
from lit_align.groups import Span


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("one two", ["one", " two"]),
        ("  one\n\ntwo \n", ["  one", "\n\ntwo \n"]),
        ("one", ["one"]),
        ("", []),
    ],
)
def test_words_carry_the_whitespace_before_them(text: str, expected: list[str]) -> None:
    assert [text[first:last] for first, last in words(text)] == expected


@pytest.mark.parametrize(
    ("original", "edited", "unchanged"),
    [
        ("the cat sat", "the cat sat", ["the", " cat", " sat"]),
        ("the cat sat", "the dog sat", ["the", " sat"]),
        ("the cat sat", "the big cat sat", ["the", " cat", " sat"]),
        ("the big cat sat", "the cat sat", ["the", " sat"]),
        ("the cat sat down", "the cat sat", ["the", " cat"]),
        ("the cat", "no dogs", []),
    ],
    ids=["same", "replaced", "inserted", "deleted", "deleted at the end", "all new"],
)
def test_an_edit_leaves_words_unchanged(original: str, edited: str, unchanged: list[str]) -> None:
    spans = unchanged_spans(original, edited, 0.25)
    assert [edited[span.start : span.end] for span in spans] == unchanged
    assert all(span.weight == 0.25 for span in spans)


def test_a_token_weighs_the_mean_of_its_visible_characters() -> None:
    #       ab␣cd: b weighs 3, cd weigh 0.5
    spans = [Span(1, 2, 3.0), Span(3, 5, 0.5)]
    offsets = [(0, 2), (2, 3), (2, 5), (1, 4), (4, 5)]
    assert token_weights("ab cd", spans, offsets) == [2.0, 1.0, 0.5, 1.75, 0.5]


def test_tokens_outside_of_the_text_weigh_what_its_ends_do() -> None:
    spans = [Span(0, 1, 2.0), Span(2, 3, 4.0)]
    assert token_weights("abc", spans, [(-5, -1), (-1, 1), (2, 6), (3, 3), (7, 9)]) == [2.0, 2.0, 4.0, 4.0, 4.0]
    assert token_weights("abc", spans, []) == []


def test_whitespace_tokens_weigh_what_they_are_given() -> None:
    assert token_weights("a  b", [Span(1, 3, 0.5)], [(0, 1), (1, 3), (3, 4)]) == [1.0, 0.5, 1.0]
