"""Rows of responses as answers, counted by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from lit_align.annotation.candidates import Reading, read_candidates
from lit_align.errors import UserError
from lit_align.feedback import LengthReward

ROWS: list[dict[str, Any]] = [
    {"prompt": "p", "responses": ["a", "", "b", "a"], "finished": [True, True, False, True], "models": list("wxyz")},
    {"prompt": "p", "responses": ["", " "]},
    {"prompt": "p", "responses": ["a", "a"]},
    {"prompt": "p", "responses": ["a", "", "c"], "scores": [0.5, 3, 2]},
    {"prompt": "p", "responses": ["a", "b"], "ranking": [2, 1]},
    {"prompt": [{"role": "user", "content": "q"}], "chosen": "yes", "rejected": "no"},
]


def as_file(folder: Path, rows: list[dict[str, Any]]) -> str:
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_what_is_kept_and_what_is_left_out(tmp_path: Path) -> None:
    rows, reading = read_candidates(as_file(tmp_path, ROWS), None, None, drop_cut=False)
    assert reading == Reading(rows=6, empty=4, repeated=2, cut=1, too_few=2)
    assert [[answer.response for answer in row.answers] for row in rows] == [
        ["a", "b"],
        ["a", "c"],
        ["a", "b"],
        ["yes", "no"],
    ]
    assert [row.scores for row in rows] == [None, (0.5, 2.0), (-2.0, -1.0), (1.0, 0.0)]
    assert [row.models for row in rows] == [("w", "y"), None, None, None]
    assert [answer.finished for answer in rows[0].answers] == [True, False]
    assert rows[3].answers[0].prompt == [{"role": "user", "content": "q"}]


def test_what_was_cut_may_be_left_out(tmp_path: Path) -> None:
    rows, reading = read_candidates(as_file(tmp_path, ROWS), None, 4, drop_cut=True)
    assert (len(rows), reading.rows, reading.cut, reading.too_few) == (1, 4, 1, 3)


def test_columns_by_other_names(tmp_path: Path) -> None:
    path = as_file(tmp_path, [{"q": "p", "r": ["a", "b"], "finished": "no list"}])
    rows, _ = read_candidates(path, {"prompt": "q", "responses": "r"}, None, drop_cut=False)
    assert [answer.finished for answer in rows[0].answers] == [True, True]


def test_malformed_rows_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"row 1, column 'models': expected 2 values"):
        read_candidates(
            as_file(tmp_path, [{"prompt": "p", "responses": ["a", "b"], "models": ["x"]}]), None, None, False
        )
    with pytest.raises(UserError, match="no known kind of row"):
        read_candidates(as_file(tmp_path, [{"prompt": "p"}]), None, None, False)
    (tmp_path / "broken.jsonl").write_text("{")
    with pytest.raises(UserError, match="expected one JSON object on the line"):
        read_candidates(str(tmp_path / "broken.jsonl"), None, None, False)
    with pytest.raises(UserError, match=r"has two different responses that could be compared"):
        read_candidates(as_file(tmp_path, ROWS[1:3]), None, None, False)


def test_tokens_are_not_made_up(tmp_path: Path) -> None:
    rows, _ = read_candidates(as_file(tmp_path, ROWS), None, None, drop_cut=False)
    with pytest.raises(UserError, match="Name rewards and judges that read text"):
        LengthReward(1, 2)(rows[0].answers)
    with pytest.raises(UserError, match="Name rewards and judges that read text"):
        list(rows[0].answers[0].prompt_ids)
