"""Rows in flat arrays come out as they went in."""

from __future__ import annotations

import pickle
from collections.abc import Callable

import pytest

from lit_align.data.token_groups import TokenGroups
from lit_align.groups import Group, TokenGroup


def _text(source: str = "") -> Group:
    return Group("text", ("of", "no", "interest"), source=source)


def test_round_trip(random_groups: Callable[..., list[TokenGroup]]) -> None:
    groups = [group._replace(margin=0.25 * group.row) for group in random_groups([1, 3, 2, 9, 1])]
    rows = TokenGroups((_text(f"file, row {group.row}"), group) for group in groups)
    assert len(rows) == 5
    assert rows.n_responses == 16
    assert [rows[i] for i in range(5)] == groups
    assert [rows.source(i) for i in range(5)] == [f"file, row {i}" for i in range(5)]
    assert [pickle.loads(pickle.dumps(rows))[i] for i in range(5)] == groups
    for outside in (-1, 5):
        with pytest.raises(IndexError):
            rows[outside]


def test_labels_and_absent_scores() -> None:
    groups = [TokenGroup([1], [[2]], labels=[True], row=0), TokenGroup([3], [[4, 5]], labels=[False], row=1)]
    rows = TokenGroups((_text(), group) for group in groups)
    assert [rows[0], rows[1]] == groups
    with pytest.raises(ValueError, match="Some groups have labels and others have none"):
        TokenGroups((_text(), group) for group in [*groups, TokenGroup([1], [[2]])])


def test_no_rows() -> None:
    assert len(TokenGroups([])) == 0


def test_the_fingerprint_tells_text_from_encoding() -> None:
    def fingerprint(text: Group, tokens: TokenGroup) -> tuple[str, str]:
        print_ = TokenGroups([(text, tokens)]).fingerprint
        assert print_.rows == 1
        return print_.text, print_.tokens

    first = fingerprint(Group("a", ("b",)), TokenGroup([1], [[2, 3]]))
    assert fingerprint(Group("a", ("b",), source="elsewhere"), TokenGroup([1], [[2, 3]])) == first
    text, tokens = fingerprint(Group("a", ("c",)), TokenGroup([1], [[2, 3]]))
    assert (text != first[0], tokens) == (True, first[1])
    text, tokens = fingerprint(Group("a", ("b",)), TokenGroup([1, 2], [[3]]))
    assert (text, tokens != first[1]) == (first[0], True)
    assert fingerprint(Group("a", ("b",), margin=1.0), TokenGroup([1], [[2, 3]], margin=1.0))[1] != first[1]


def test_rows_without_weights_weigh_1_where_others_have_some() -> None:
    rows = TokenGroups(
        (_text(), group)
        for group in [
            TokenGroup([1, 2], [[3], [4, 5]]),
            TokenGroup([6], [[7, 8], [9]], weights=[[0.5, 2.0], [0.25]]),
            TokenGroup([1], [[2]]),
            TokenGroup([3, 3, 3], [[4]], weights=[[4.0]]),
            TokenGroup([1], [[2, 2]]),
        ]
    )
    expected = [[[1.0], [1.0, 1.0]], [[0.5, 2.0], [0.25]], [[1.0]], [[4.0]], [[1.0, 1.0]]]
    assert rows.has_weights
    assert [rows[i].weights for i in range(5)] == expected
    plain = TokenGroups([(_text(), TokenGroup([1], [[2]]))])
    assert (plain.has_weights, plain[0].weights) == (False, None)
    weighed = TokenGroups([(_text(), TokenGroup([1], [[2]], weights=[[1.0]]))])
    assert weighed.fingerprint.tokens != plain.fingerprint.tokens
