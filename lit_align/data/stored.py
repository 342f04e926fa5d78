"""Rows by their places: what was read once in order is read again in any order, and nothing is held in memory meanwhile."""

from __future__ import annotations

import json
import os
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO

from lit_align.data.files import csv_records, csv_row
from lit_align.data.rows import files_of, table_of
from lit_align.errors import UserError


class StoredRows(ABC):
    """A file or data set on disk. It holds no open file, so that processes may share it.

    Args:
        name: As `Source.name` has it.
    """

    def __init__(self, name: str) -> None:
        self.name = name

    @abstractmethod
    def rows(self, places: Sequence[int]) -> list[object]:
        """The rows at these places, as `read_rows` gives them.

        Raises:
            UserError: The file is no longer what it was.
        """


class StoredFile(StoredRows):
    """A file whose rows are found by the bytes at which they begin."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self._stamp = _stamp(os.stat(name))

    def rows(self, places: Sequence[int]) -> list[object]:
        """The rows that begin at these bytes."""
        try:
            with open(self.name, "rb") as file:
                if _stamp(os.fstat(file.fileno())) == self._stamp:
                    return self._read(file, places)
        except FileNotFoundError:
            pass
        raise UserError(
            f"{self.name} was changed or removed since the run began. Streaming reads it until the run ends: put it back as it "
            "was, or start again."
        )

    @abstractmethod
    def _read(self, file: BinaryIO, places: Sequence[int]) -> list[object]:
        """The rows that begin at these bytes of the open file."""


class StoredJsonl(StoredFile):
    """JSONL."""

    def _read(self, file: BinaryIO, places: Sequence[int]) -> list[object]:
        rows: list[object] = []
        for place in places:
            file.seek(place)
            rows.append(json.loads(file.readline()))
        return rows


class StoredCsv(StoredFile):
    """CSV."""

    def _read(self, file: BinaryIO, places: Sequence[int]) -> list[object]:
        _, header = next(csv_records(file))
        rows: list[object] = []
        for place in places:
            file.seek(place)
            rows.append(csv_row(header, next(csv_records(file))[1], self.name))
        return rows


class StoredTable(StoredRows):
    """An Arrow table that `datasets` maps into memory, whose rows are found by their number.

    Args:
        name: As in `StoredRows`.
        table: A `datasets.Dataset`.
    """

    def __init__(self, name: str, table: Any) -> None:
        super().__init__(name)
        self._table = table

    def rows(self, places: Sequence[int]) -> list[object]:
        """The rows of these numbers, from 0."""
        return list(self._table.__getitems__(list(places)))


def open_stored(name: str) -> StoredRows:
    """A file, a folder that `datasets` saved, or a data set of the hub, by `Source.name`.

    Parquet can only be read in blocks of many rows; `datasets` unpacks it once into its cache on disk.

    Raises:
        UserError: As `table_of`.
    """
    if not Path(name).is_file():
        return StoredTable(name, table_of(name))
    ending = Path(name).suffix
    if ending == ".parquet":
        import datasets

        return StoredTable(name, datasets.Dataset.from_parquet(name))
    return {".jsonl": StoredJsonl, ".csv": StoredCsv}[ending](name)


def refuse_unstreamable(names: Sequence[str]) -> None:
    """Refuses what has to be read whole.

    Raises:
        UserError: There are files of the kind `.json` behind these names of data sets.
    """
    for file in (file for name in names for file in files_of(name) if file.suffix == ".json"):
        raise UserError(
            f"{file} is one JSON value, which has to be read whole, so data.streaming cannot read it row by row. Convert it to "
            f"JSONL (jq -c '.[]' {file.name} > {file.stem}.jsonl), or leave streaming out."
        )


def _stamp(found: os.stat_result) -> tuple[int, int]:
    return found.st_size, found.st_mtime_ns
