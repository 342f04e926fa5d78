"""docs/data.md is true: its rows are of the kinds it says, its tables list what there is, its commands run."""

from __future__ import annotations

import json
import re
import shlex
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

from lit_align import __main__ as dispatcher
from lit_align.data.files import READERS
from lit_align.data.schema import SCHEMAS, find_schema, read_group

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "data.md").read_text(encoding="utf-8")
# What the quickstart's SFT would have left in runs/, here without training; two steps.
SMALL = [
    "--model.policy={path: mini_instruct, init: random}",
    "--trainer.max_steps=2",
    "--trainer.limit_val_batches=1",
    "--trainer.logger=null",
    "--trainer.log_every_n_steps=1",
    "--trainer.enable_progress_bar=false",
    "--trainer.enable_model_summary=false",
    "--data.max_rows=16",
]


class Block(NamedTuple):
    """A fenced block: its language, its title and its text."""

    language: str
    title: str
    text: str


BLOCKS = [
    Block(*found.groups(default=""))
    for found in re.finditer(r"^```(\w+)(?: title=\"([^\"]+)\")?\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
]
FILES = [block for block in BLOCKS if "." in block.title]
ROWS = [block for block in BLOCKS if block.language == "json" and block not in FILES]
COMMANDS = [
    shlex.split(line)[3:]
    for block in BLOCKS
    if block.language == "sh"
    for line in block.text.splitlines()
    if line.startswith("python -m lit_align ")
]


@pytest.fixture
def reader(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the configs and the files of the page."""
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    for block in FILES:
        (tmp_path / block.title).write_text(block.text, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    return tmp_path


@pytest.mark.parametrize("block", ROWS, ids=lambda block: block.title)
def test_rows_are_of_the_kind_that_stands_above_them(block: Block) -> None:
    row = json.loads(block.text)
    assert find_schema(row, "")[0].name == block.title
    read_group(row, "")


def test_every_kind_of_row_has_its_columns_in_the_table_and_an_example() -> None:
    table = re.findall(r"^\| ([\w ]+) \| (`.*) \|$", PAGE, re.MULTILINE)
    listed = [(name, tuple(re.findall(r"`(\w+)`", columns))) for name, columns in table]
    assert [(schema.name, (*schema.required, *schema.optional)) for schema in SCHEMAS] == listed
    assert {block.title for block in ROWS} == {schema.name for schema in SCHEMAS}


def test_every_ending_is_listed() -> None:
    assert all(f"`rows{ending}`" in PAGE for ending in READERS)


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning", "ignore::DeprecationWarning")
@pytest.mark.parametrize("arguments", [c for c in COMMANDS if c[0] == "fit"], ids=lambda arguments: arguments[-1])
def test_what_the_page_trains(reader: Path, arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["lit-align", *arguments, *SMALL])
    assert dispatcher.main() == 0
    (run,) = (reader / "runs" / "mine").iterdir()
    assert (run / "model" / "model.safetensors").is_file()


def test_what_the_data_command_prints(
    reader: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (arguments,) = (command for command in COMMANDS if command[0] == "data")
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setattr(sys, "argv", ["lit-align", *arguments])
    assert dispatcher.main() == 0
    printed = "\n".join(line.rstrip() for line in capsys.readouterr().out.splitlines())
    (shown,) = (block.text for block in BLOCKS if block.language == "text" and "Lengths in tokens" in block.text)
    assert printed == shown.rstrip("\n")
