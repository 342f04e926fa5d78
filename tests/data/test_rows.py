"""Files, folders and hub names; malformed lines."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pytest

from lit_align.data.counts import Counts
from lit_align.data.row_reader import RowError
from lit_align.data.rows import read_groups
from lit_align.errors import UserError
from lit_align.groups import Group

ROWS: list[dict[str, Any]] = [
    {"prompt": [{"role": "user", "content": f"question {number}"}], "completion": f"answer {number}"}
    for number in range(3)
]


def _groups(name: str) -> list[Group]:
    return [
        Group(
            [{"role": "user", "content": f"question {number}"}],
            (f"answer {number}",),
            source=f"{name}, row {number + 1}",
        )
        for number in range(3)
    ]


@pytest.fixture
def written(tmp_path: Path, write_jsonl: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> Path:
    """The same rows in every form that is read, in the current folder."""
    monkeypatch.chdir(tmp_path)
    write_jsonl(ROWS)
    (tmp_path / "rows.json").write_text(json.dumps(ROWS))
    table = datasets.Dataset.from_list(ROWS)
    table.to_parquet("rows.parquet")
    table.save_to_disk("saved")
    datasets.DatasetDict({"train": table, "test": table.select([0])}).save_to_disk("splits")
    return tmp_path


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.json", "rows.parquet", "saved", "splits:train"])
def test_every_form_gives_the_same_groups(written: Path, name: str) -> None:
    assert list(read_groups(name, Counts())) == _groups(name)


def test_absolute_paths(written: Path) -> None:
    name = str(written / "splits") + ":test"
    assert list(read_groups(name, Counts())) == _groups(name)[:1]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("row.jsonl", r"There is no file 'row.jsonl' \(did you mean 'rows.jsonl?'\?\)\.$"),
        ("nowhere/rows.jsonl", "There is no file 'nowhere/rows.jsonl' .*nor a folder 'nowhere'"),
        ("./quite_else", "the folder has rows.json, rows.jsonl, rows.parquet, saved, splits"),
        ("splits", "'splits' has the splits train, test: name one, as in splits:train"),
        ("splits:val", "has the splits train, test"),
        ("saved/..", "has files ending in .csv, .json, .jsonl, .parquet: name those that are meant"),
        ("empty", r"no folder that datasets.save_to_disk wrote, and has no file ending in .*There are: nothing in it"),
        ("saved:train", "'saved' was saved without splits: leave out ':train'"),
        ("saved@small", "'saved' is a folder, and only data sets of the hub have configurations"),
        ("damaged", "'damaged' cannot be read as a folder that datasets.save_to_disk wrote"),
        ("rows.txt", "expected a file ending in .jsonl, .json, .csv, .parquet"),
        ("broken.csv", "broken.csv: no valid CSV in UTF-8: "),
        ("twice.csv", "twice.csv: two columns have the same name: prompt, prompt"),
        ("broken.json", "broken.json: no valid JSON"),
        ("object.json", "object.json: expected a list of rows, found an object with nothing"),
        ("broken.parquet", "broken.parquet: no valid Parquet"),
    ],
)
def test_what_cannot_be_read_is_refused_with_a_hint(written: Path, name: str, message: str) -> None:
    (written / "broken.json").write_text("[1,")
    (written / "object.json").write_text("{}")
    (written / "empty").mkdir()
    (written / "damaged").mkdir()
    (written / "damaged" / "state.json").write_text("{")
    (written / "broken.csv").write_text('prompt,completion\n"p" x,c\n')
    (written / "twice.csv").write_text("prompt,prompt\np,c\n")
    (written / "broken.parquet").write_text("not Parquet")
    if name == "rows.txt":
        (written / name).touch()
    if name == "./quite_else":
        for extra in ("broken.json", "object.json", "broken.parquet", "broken.csv", "twice.csv"):
            os.remove(extra)
        os.rmdir("empty")
        shutil.rmtree("damaged")
    with pytest.raises(UserError, match=message):
        list(read_groups(name, Counts()))


def test_malformed_rows_are_refused_by_line_and_column(write_jsonl: Callable[..., str]) -> None:
    good = {"prompt": "p", "completion": "c"}
    for lines, message in [
        ([good, "", "{'prompt'"], r"rows\.jsonl, row 3: expected one JSON object"),
        ([good, good, {"prompt": "p", "completion": ""}], r"rows\.jsonl, row 3, column 'completion': expected"),
        (["[1, 2]"], r"rows\.jsonl, row 1: expected an object"),
    ]:
        with pytest.raises(RowError, match=message):
            list(read_groups(write_jsonl(lines), Counts()))


def test_text_that_is_no_utf8_is_refused_by_line(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_bytes(
        b'{"prompt": "p", "completion": "c"}\n{"prompt": "\xff", "completion": "c"}\n'
    )
    with pytest.raises(RowError, match="row 2: expected one JSON object"):
        list(read_groups(str(tmp_path / "rows.jsonl"), Counts()))


def test_skipped_rows_are_counted_with_the_first_reasons(write_jsonl: Callable[..., str]) -> None:
    good = {"prompt": "p", "completion": "c"}
    bad = {"prompt": "p", "completion": None}
    counts = Counts(on_bad_row="skip")
    groups = list(read_groups(write_jsonl([good, bad, "nonsense", bad, good, bad]), counts))
    assert [group.source.split(", ")[-1] for group in groups] == ["row 1", "row 5"]
    assert counts.bad == 4
    assert len(counts.reasons) == 3
    for reason, where in zip(counts.reasons, ["row 2, column 'completion'", "row 3: ", "row 4, column"], strict=True):
        assert where in reason
    assert "4 bad rows skipped" in str(counts)


def test_hub_names_are_loaded_with_their_split(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, str | None, str | None]] = []

    def load_dataset(path: str, name: str | None = None, split: str | None = None) -> datasets.Dataset:
        asked.append((path, name, split))
        return datasets.Dataset.from_list(ROWS)

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    for name in ("someone/rows:train[:3]", "someone/rows@v1.0-en:train", "rows@small", "rows"):
        assert list(read_groups(name, Counts())) == _groups(name)
    assert asked == [
        ("someone/rows", None, "train[:3]"),
        ("someone/rows", "v1.0-en", "train"),
        ("rows", "small", None),
        ("rows", None, None),
    ]


def test_a_hub_name_that_cannot_be_had(monkeypatch: pytest.MonkeyPatch) -> None:
    def load_dataset(path: str, name: str | None, split: str | None) -> datasets.Dataset:
        if name is None and split is None:
            raise ValueError("Config name is missing.\nPlease pick one among ['en', 'fr']")
        raise ConnectionError("no route to the hub")

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    with pytest.raises(
        UserError, match=r"'someone/rows:train' is no file or folder here .*from the hub: no route to the hub"
    ):
        list(read_groups("someone/rows:train", Counts()))
    with pytest.raises(UserError, match=r"pick one among \['en', 'fr'\] Name one as in someone/rows@default:train"):
        list(read_groups("someone/rows", Counts()))
