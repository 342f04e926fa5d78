"""Files to rows, one at a time, each with its place, so that a row that cannot be read is named."""

from __future__ import annotations

import codecs
import csv
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

from lit_align.data.row_reader import Cell, RowError, delimiter_hint, describe
from lit_align.errors import UserError


class Source(str):
    """Where a row came from, as messages say it: "rows.jsonl, row 12".

    Args:
        name: The file, or the data set that `datasets` reads.
        number: Of the row in it, from 1: a line of JSONL, an item elsewhere.
        place: By which the row is found again: in `.jsonl` and `.csv` the byte at which it begins, elsewhere the number of rows
            before it.
    """

    __slots__ = ("name", "number", "place")

    name: str
    number: int
    place: int

    def __new__(cls, name: str, number: int, place: int) -> Source:
        """The text and its parts."""
        source = super().__new__(cls, f"{name}, row {number}")
        source.name, source.number, source.place = name, number, place
        return source

    def __getnewargs__(self) -> tuple[str, int, int]:  # type: ignore[override]  # those of str are one text
        """What a copy is made of."""
        return self.name, self.number, self.place


Rows = Iterator[tuple[Source, object]]
"""Pairs of source and row; a row is a `RowError` where it cannot even be parsed."""


def read_file(path: Path) -> Rows:
    """The rows of one file, in order.

    Raises:
        UserError: It has another ending, or cannot be read as what its ending says.
    """
    if path.suffix not in READERS:
        raise UserError(f"{path}: expected a file ending in {', '.join(READERS)}.")
    return READERS[path.suffix](path)


def shards(folder: Path, split: str | None) -> list[Path]:
    """The files of a folder that together are one data set, in the order of their names.

    Args:
        folder: With files of one ending, for example train-00000-of-00002.parquet. Others in it, and hidden ones, are no
            rows and are passed over.
        split: Only files whose name begins with it. Needed where names begin with more than one of `SPLITS`.

    Raises:
        UserError: There are no such files, files of several kinds, or several splits and none is named.
    """
    files = sorted(file for file in folder.iterdir() if file.suffix in READERS and not file.name.startswith("."))
    if split is None and len(found := sorted({name for file in files if (name := _split(file))})) > 1:
        raise UserError(f"{folder} has files of the splits {', '.join(found)}: name one, as in {folder}:{found[0]}.")
    if split is not None:
        files = [file for file in files if file.stem == split or file.name.startswith((f"{split}-", f"{split}_"))]
    if len(endings := sorted({file.suffix for file in files})) > 1:
        raise UserError(f"{folder} has files ending in {', '.join(endings)}: name those that are meant, as a list.")
    if not files:
        of_split = "" if split is None else f" whose name begins with {split!r}"
        raise UserError(
            f"{folder} is no folder that datasets.save_to_disk wrote, and has no file{of_split} ending in "
            f"{', '.join(READERS)}. There are: {listing(folder)}."
        )
    return files


def listing(folder: Path) -> str:
    """The first few names in a folder."""
    names = sorted(entry.name for entry in folder.iterdir() if not entry.name.startswith("."))
    return ", ".join(names[:5]) + (", ..." if len(names) > 5 else "") if names else "nothing in it"


def _split(file: Path) -> str | None:
    begins = file.stem.split("-")[0].split("_")[0].lower()
    return begins if begins in SPLITS else None


def csv_records(file: BinaryIO) -> Iterator[tuple[int, list[str]]]:
    """The records of a CSV file from where it stands, each with the byte at which it begins; empty lines are none.

    Raises:
        csv.Error: It is no valid CSV.
        UnicodeDecodeError: It is not in UTF-8.
    """
    csv.field_size_limit(sys.maxsize)  # 128 KiB otherwise, which a long dialogue exceeds
    lines = _CsvLines(file)
    records = csv.reader(lines, strict=True)
    while True:
        place = lines.place
        if (cells := next(records, None)) is None:
            return
        if cells:
            yield place, cells


def csv_row(header: Sequence[str], cells: Sequence[str], source: str) -> dict[str, Cell | None] | RowError:
    """A record as a row."""
    if len(cells) != len(header):
        found = f"{len(header)} cells, as many as the first line names, found {len(cells)}"
        return RowError(f"{source}: expected {found}.{delimiter_hint(header)}")
    return {name: Cell(cell) if cell else None for name, cell in zip(header, cells, strict=True)}


class _CsvLines(Iterator[str]):
    """Lines as csv takes them, and the byte at which the next one begins: a quoted cell may span several.

    Text files, which decode in blocks, cannot say where a line begins.
    """

    def __init__(self, file: BinaryIO) -> None:
        self.place = file.tell()
        # Lines of bytes end with \n alone, those of CSV with \r too.
        self._lines = (piece for line in file for piece in line.splitlines(keepends=True))

    def __next__(self) -> str:
        line = next(self._lines)
        # Spreadsheets begin a file with a byte-order mark, which would become part of the first column's name.
        text = (line if self.place else line.removeprefix(codecs.BOM_UTF8)).decode()
        self.place += len(line)
        return text


def _jsonl(path: Path) -> Rows:
    place = 0
    with path.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            source = Source(str(path), number, place)
            place += len(line)
            if not line.strip():
                continue
            try:
                yield source, json.loads(line.rstrip())
            except (ValueError, RecursionError) as error:
                yield source, RowError(f"{source}: expected one JSON object on the line: {error}.")


def _json(path: Path) -> Rows:
    try:
        rows = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: no valid JSON: {error}. A file with one object a line must end in .jsonl.") from error
    if not isinstance(rows, list):
        raise UserError(f"{path}: expected a list of rows, found {describe(rows)}.")
    for place, row in enumerate(rows):
        yield Source(str(path), place + 1, place), row


def _csv(path: Path) -> Rows:
    try:
        with path.open("rb") as file:
            records = csv_records(file)
            _, header = next(records, (0, []))
            if len(set(header)) < len(header):
                raise UserError(f"{path}: two columns have the same name: {', '.join(header)}.")
            for number, (place, cells) in enumerate(records, start=1):
                source = Source(str(path), number, place)
                yield source, csv_row(header, cells, source)
    except (csv.Error, UnicodeDecodeError) as error:
        raise UserError(f"{path}: no valid CSV in UTF-8: {error}.") from error


def _parquet(path: Path) -> Rows:
    import pyarrow
    import pyarrow.parquet

    place = 0
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            for batch in file.iter_batches(1000):
                for row in batch.to_pylist():
                    yield Source(str(path), place + 1, place), row
                    place += 1
    # A damaged file shows itself where it is read, and then in many ways.
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: no valid Parquet: {error}") from error


READERS: dict[str, Callable[[Path], Rows]] = {".jsonl": _jsonl, ".json": _json, ".csv": _csv, ".parquet": _parquet}
"""What reads files, by their ending."""

SPLITS = ("train", "training", "valid", "validation", "val", "dev", "test", "eval")
"""How names of shards begin where they say which split they are of."""
