"""Files that grow: whole lines only, and never with other settings."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from lit_align.annotation.records import Records, begin, digest, note, settings_file, write_rows
from lit_align.data.rows import read_rows
from lit_align.errors import UserError


def test_a_line_that_was_half_written_is_cut_off(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_bytes(b'{"a": 1}\n{"a": 2}\n{"a": "\xc3')
    records = Records(file)
    assert len(records) == 2
    records.append([{"a": "ä"}, {"a": "\udc80"}])
    assert file.read_bytes() == b'{"a": 1}\n{"a": 2}\n{"a": "\xc3\xa4"}\n{"a": "\\udc80"}\n'
    assert [row["a"] for row in Records(file).read()] == [1, 2, "ä", "\udc80"]


def test_a_file_is_begun_once(tmp_path: Path) -> None:
    out = tmp_path / "deep" / "rows.jsonl"
    assert len(begin(out, {"k": 4, "path": (1, 2)})) == 2
    assert begin(out, {"k": 4, "path": (1, 2)}) == {"k": 4, "path": [1, 2]}
    with pytest.raises(UserError, match=r"begun with other settings: k \(4 then, 5 now\)\. Go on"):
        begin(out, {"k": 5, "path": (1, 2)})
    note(out, {"k": 4, "path": (1, 2), "more": "kept"})
    assert begin(out, {"k": 4, "path": (1, 2)})["more"] == "kept"


def test_a_file_of_somebody_else_is_left_alone(tmp_path: Path) -> None:
    out = tmp_path / "rows.jsonl"
    out.write_text("mine\n")
    with pytest.raises(UserError, match=r"rows\.jsonl is there already, and no rows\.jsonl\.settings\.json says"):
        begin(out, {})
    assert out.read_text() == "mine\n"
    assert not settings_file(out).exists()
    with pytest.raises(UserError, match=r"rows\.csv: name a file that ends in \.jsonl or \.parquet"):
        begin(tmp_path / "rows.csv", {})
    (tmp_path / "verdicts").write_text("")
    with pytest.raises(UserError, match="verdicts is there already"):
        begin(tmp_path / "other.jsonl", {}, tmp_path / "verdicts")


@pytest.mark.parametrize("ending", ["jsonl", "parquet"])
def test_rows_are_read_back(tmp_path: Path, ending: str) -> None:
    rows = [{"prompt": [{"role": "user", "content": "ä?"}], "scores": [0.1, 2.0]}, {"prompt": None, "scores": []}]
    write_rows(tmp_path / f"rows.{ending}", rows)
    assert [row for _, row in read_rows(str(tmp_path / f"rows.{ending}"))] == rows
    assert [file.name for file in tmp_path.iterdir()] == [f"rows.{ending}"]


def test_what_parquet_cannot_hold_is_said(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"Name a file that ends in \.jsonl"):
        write_rows(tmp_path / "rows.parquet", [{"prompt": "text"}, {"prompt": [{"role": "user", "content": "chat"}]}])


def test_a_digest_tells_order_and_content_apart() -> None:
    assert digest(["a", "b"]) == digest(json.loads('["a", "b"]'))
    assert len({digest(rows) for rows in (["a", "b"], ["b", "a"], ["ab"], ["a"], [])}) == 5
