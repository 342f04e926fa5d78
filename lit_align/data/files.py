"""Files to rows, one at a time, each with its place, so that a row that cannot be read is named."""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from lit_align.data.row_reader import Cell, RowError
from lit_align.errors import UserError

Rows = Iterator[tuple[str, object]]
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


def _jsonl(path: Path) -> Rows:
    with path.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            source = f"{path}, row {number}"
            try:
                yield source, json.loads(line)
            except ValueError as error:
                yield source, RowError(f"{source}: expected one JSON object on the line: {error}.")


def _json(path: Path) -> Rows:
    try:
        rows = json.loads(path.read_bytes())
    except ValueError as error:
        raise UserError(f"{path}: no valid JSON: {error}. A file with one object a line must end in .jsonl.") from error
    if not isinstance(rows, list):
        raise UserError(f"{path}: expected a list of rows.")
    for number, row in enumerate(rows, start=1):
        yield f"{path}, row {number}", row


def _csv(path: Path) -> Rows:
    csv.field_size_limit(sys.maxsize)  # 128 KiB otherwise, which a long dialogue exceeds
    try:
        # Spreadsheets begin a file with a byte-order mark, which would become part of the first column's name.
        with path.open(encoding="utf-8-sig", newline="") as file:
            records = csv.reader(file, strict=True)
            header = next(records, [])
            if len(set(header)) < len(header):
                raise UserError(f"{path}: two columns have the same name: {', '.join(header)}.")
            for number, cells in enumerate((record for record in records if record), start=1):
                source = f"{path}, row {number}"
                if len(cells) != len(header):
                    found = f"{len(header)} cells, as many as the first line names, found {len(cells)}"
                    yield source, RowError(f"{source}: expected {found}.")
                else:
                    yield source, {name: Cell(cell) if cell else None for name, cell in zip(header, cells, strict=True)}
    except (csv.Error, UnicodeDecodeError) as error:
        raise UserError(f"{path}: no valid CSV in UTF-8: {error}.") from error


def _parquet(path: Path) -> Rows:
    import pyarrow
    import pyarrow.parquet

    try:
        file = pyarrow.parquet.ParquetFile(path)
    except pyarrow.ArrowInvalid as error:
        raise UserError(f"{path}: no valid Parquet: {error}") from error
    number = 0
    with file:
        for batch in file.iter_batches(1000):
            for row in batch.to_pylist():
                number += 1
                yield f"{path}, row {number}", row


READERS: dict[str, Callable[[Path], Rows]] = {".jsonl": _jsonl, ".json": _json, ".csv": _csv, ".parquet": _parquet}
"""What reads files, by their ending."""

SPLITS = ("train", "training", "valid", "validation", "val", "dev", "test", "eval")
"""How names of shards begin where they say which split they are of."""
