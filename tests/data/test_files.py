"""CSV, and folders of files."""

from __future__ import annotations

import copy
import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from lit_align.data.counts import Counts
from lit_align.data.files import Source
from lit_align.data.row_reader import RowError
from lit_align.data.rows import read_groups
from lit_align.errors import UserError
from lit_align.groups import Group, Span


def _csv(folder: Path, text: str) -> str:
    path = folder / "rows.csv"
    path.write_text(text, encoding="utf-8")
    return str(path)


def _groups(name: str) -> list[Group]:
    return list(read_groups(name, Counts()))


def test_csv_is_text_and_json_where_text_will_not_do(tmp_path: Path) -> None:
    pairs = _csv(tmp_path, '\ufeffprompt,chosen,rejected,margin\np,"two\nlines, and a ""quote""",123,0.5\n\nq,c,r,\n')
    assert _groups(pairs) == [
        Group("p", ('two\nlines, and a "quote"', "123"), (1.0, 0.0), None, 0.5, f"{pairs}, row 1"),
        Group("q", ("c", "r"), (1.0, 0.0), source=f"{pairs}, row 2"),
    ]
    assert all(type(text) is str for group in _groups(pairs) for text in (group.prompt, *group.responses))
    labels = _groups(_csv(tmp_path, 'prompt,completion,label,weights\np,c d,True,"[1, 0.5]"\np,c,false,\n'))
    assert [group.labels for group in labels] == [(True,), (False,)]
    assert labels[0].weights == ((Span(0, 1, 1.0), Span(1, 3, 0.5)),)
    (ranked,) = _groups(_csv(tmp_path, 'prompt,responses,scores\np,"[""x"", ""y""]","[1, 2.5]"\n'))
    assert (ranked.responses, ranked.scores) == (("x", "y"), (1.0, 2.5))
    chat = json.dumps([{"role": "user", "content": "u"}, {"role": "assistant", "content": "a"}]).replace('"', '""')
    (turns,) = _groups(_csv(tmp_path, f'messages\n"{chat}"\n'))
    assert (turns.prompt, turns.responses) == ([{"role": "user", "content": "u"}], ("a",))


SEMICOLON = r" The delimiter seems to be ';', and CSV is read with commas: write the file with commas\.$"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("prompt,chosen,rejected\np,c\n", "row 1: expected 3 cells, as many as the first line names, found 2"),
        ("prompt,chosen,rejected\np,c,r\np,,r\n", "row 2, column 'chosen': expected a text .*found nothing"),
        (
            "prompt,completion,label\np,c,yes\n",
            "row 1, column 'label': expected true or false, or 1 or 0, found the text 'yes'",
        ),
        ("prompt;completion\np;c\n", rf"the columns prompt;completion make no known kind of row\.{SEMICOLON}"),
        ("prompt;completion\np;c, d\n", rf"row 1: expected 1 cells, .*, found 2\.{SEMICOLON}"),
        (
            "prompt\tcompletion\np\tc\n",
            "no known kind of row\\. The delimiter seems to be a tab, and CSV is read with commas",
        ),
        (
            "prompt,chosen,rejected,margin\np,c,r,nan\n",
            "column 'margin': expected a finite number, found the text 'nan'",
        ),
    ],
)
def test_bad_cells_are_refused_by_row_and_column(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(RowError, match=message):
        _groups(_csv(tmp_path, text))


def test_a_column_map_of_a_file_without_commas(tmp_path: Path) -> None:
    path = _csv(tmp_path, "prompt;completion\np;c\n")
    with pytest.raises(RowError, match=rf"names 'prompt', the row has prompt;completion\.{SEMICOLON}"):
        list(read_groups(path, Counts(), {"prompt": "prompt", "completion": "completion"}))
    # One column may be called anything.
    (group,) = read_groups(_csv(tmp_path, "a;b\nx;y\n"), Counts(), {"text": "a;b"})
    assert group.responses == ("x;y",)


def test_cells_longer_than_the_csv_module_takes_by_itself(tmp_path: Path) -> None:
    (group,) = _groups(_csv(tmp_path, f"prompt,completion\np,{'long ' * 40_000}\n"))
    assert len(group.responses[0]) == 200_000


def _shards(folder: Path, names: Sequence[str]) -> Path:
    """A folder with one row a file, whose completion is the file's name."""
    folder.mkdir()
    for name in names:
        (folder / name).write_text(json.dumps({"prompt": "p", "completion": name}) + "\n")
    (folder / "README.md").write_text("no rows")
    return folder


def test_a_folder_of_shards_is_one_data_set(tmp_path: Path) -> None:
    folder = _shards(tmp_path / "rows", ["part-00001.jsonl", "part-00000.jsonl", ".hidden.jsonl"])
    assert [(group.responses[0], group.source) for group in _groups(str(folder))] == [
        ("part-00000.jsonl", f"{folder / 'part-00000.jsonl'}, row 1"),
        ("part-00001.jsonl", f"{folder / 'part-00001.jsonl'}, row 1"),
    ]


def test_splits_of_a_folder_are_never_mixed(tmp_path: Path) -> None:
    names = ["train-00000-of-00002.jsonl", "train-00001-of-00002.jsonl", "test.jsonl"]
    folder = _shards(tmp_path / "rows", names)
    with pytest.raises(UserError, match="has files of the splits test, train: name one, as in "):
        _groups(str(folder))
    assert [group.responses[0] for group in _groups(f"{folder}:train")] == names[:2]
    assert [group.responses[0] for group in _groups(f"{folder}:test")] == names[2:]
    with pytest.raises(UserError, match="no file whose name begins with 'val' ending in"):
        _groups(f"{folder}:val")


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_csv_lines_may_end_as_any_system_ends_them(tmp_path: Path, end: str) -> None:
    path = tmp_path / "rows.csv"
    lines = ["\ufeffprompt,completion", "é,c", "", f'q,"two{end}lines"', "r,d"]
    path.write_bytes(end.join(lines).encode())
    groups = _groups(str(path))
    assert [(group.prompt, group.responses[0]) for group in groups] == [("é", "c"), ("q", f"two{end}lines"), ("r", "d")]
    assert [group.source for group in groups] == [f"{path}, row {number}" for number in (1, 2, 3)]


def test_a_source_is_a_text_that_knows_its_parts() -> None:
    source = Source("rows.jsonl", 12, 340)
    for same in (source, copy.deepcopy(source)):
        assert same == "rows.jsonl, row 12"
        assert (same.name, same.number, same.place) == ("rows.jsonl", 12, 340)
