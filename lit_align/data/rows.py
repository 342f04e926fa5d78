"""Files, folders and hub names to rows, and rows to `Group`s."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from lit_align.data.counts import Counts
from lit_align.data.row_reader import RowError
from lit_align.data.schema import read_group
from lit_align.errors import UserError
from lit_align.groups import Group

SUFFIXES = (".jsonl", ".json", ".parquet")


def read_groups(name: str, counts: Counts, columns: Mapping[str, str] | None = None) -> Iterator[Group]:
    """The rows of one data set, in order, as groups.

    Args:
        name: A `.jsonl`, `.json` or `.parquet` file, a folder that `datasets` saved, or a hub name; the last two
            optionally with a split: "folder:train".
        counts: Says what happens to bad rows, and counts those skipped.
        columns: As in `read_group`.

    Raises:
        RowError: A bad row, unless `counts` skips them; it names file, row (a line of JSONL, an item elsewhere, from 1)
            and column.
        UserError: There is no such file or data set, or it cannot be read at all.
    """
    for source, row in read_rows(name):
        try:
            if isinstance(row, RowError):
                raise row
            group = read_group(row, source, columns)
        except RowError as error:
            counts.bad_row(error)
        else:
            yield group


def is_hub_name(name: str) -> bool:
    """Whether a name of a data set can only be one on the hub, because nothing of this machine goes by it."""
    return not Path(name).exists() and not Path(_split_of(name)[0]).exists() and not _looks_like_path(name)


def load_from_hub(name: str) -> Any:
    """A data set of the hub, from the cache where it is there.

    Raises:
        UserError: There is none, it cannot be reached, or it has several splits and the name says none.
    """
    import datasets

    path, split = _split_of(name)
    try:
        loaded = datasets.load_dataset(path, split=split)
    except (OSError, ValueError, RuntimeError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(
            f"{name!r} is no file or folder here{_nearest(Path(path))}, and could not be had from the hub: {reason}"
        ) from error
    return _one_split(loaded, name, split)


def read_rows(name: str) -> Iterator[tuple[str, object]]:
    """Pairs of source and row; a row is a `RowError` where it cannot even be parsed."""
    path = Path(name)
    if path.is_file():
        if path.suffix not in SUFFIXES:
            raise UserError(f"{name}: expected a file ending in {', '.join(SUFFIXES)}.")
        read = {".jsonl": _jsonl, ".json": _json, ".parquet": _parquet}[path.suffix]
        yield from read(path)
        return
    if path.is_dir() or Path(_split_of(name)[0]).is_dir():
        rows = _saved_folder(name)
    elif is_hub_name(name):
        rows = load_from_hub(name)
    else:
        raise UserError(f"There is no file {name!r}{_nearest(path)}.")
    for number, row in enumerate(rows, start=1):
        yield f"{name}, row {number}", row


def _jsonl(path: Path) -> Iterator[tuple[str, object]]:
    with path.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            source = f"{path}, row {number}"
            try:
                yield source, json.loads(line)
            except ValueError as error:
                yield source, RowError(f"{source}: expected one JSON object on the line: {error}.")


def _json(path: Path) -> Iterator[tuple[str, object]]:
    try:
        rows = json.loads(path.read_bytes())
    except ValueError as error:
        raise UserError(f"{path}: no valid JSON: {error}. A file with one object a line must end in .jsonl.") from error
    if not isinstance(rows, list):
        raise UserError(f"{path}: expected a list of rows.")
    for number, row in enumerate(rows, start=1):
        yield f"{path}, row {number}", row


def _parquet(path: Path) -> Iterator[tuple[str, object]]:
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


def _saved_folder(name: str) -> Any:
    import datasets

    folder, split = (name, None) if Path(name).is_dir() else _split_of(name)
    try:
        loaded = datasets.load_from_disk(folder)
    except FileNotFoundError as error:
        raise UserError(
            f"{folder!r} is no folder that datasets.save_to_disk wrote. Name the files in it: {_listing(Path(folder))}."
        ) from error
    return _one_split(loaded, name, split)


def _one_split(loaded: Any, name: str, split: str | None) -> Any:
    """The data set itself, where `datasets` gave a dictionary of splits."""
    if not isinstance(loaded, Mapping):
        return loaded
    if split is None and len(loaded) == 1:
        return next(iter(loaded.values()))
    if split not in loaded:
        example = f"{_split_of(name)[0]}:{next(iter(loaded))}"
        raise UserError(f"{name!r} has the splits {', '.join(loaded)}: name one, as in {example}.")
    return loaded[split]


def _split_of(name: str) -> tuple[str, str | None]:
    """Name and split of "name:split"; no split without a colon."""
    # A split may be a slice or a sum, "train[:10%]+test"; a path may hold colons of its own.
    found = re.fullmatch(r"(.+?):([\w\[\]:%+-]+)", name)
    return (found[1], found[2]) if found else (name, None)


def _looks_like_path(name: str) -> bool:
    path = _split_of(name)[0]
    return (
        path.startswith((".", "/", "~"))
        or path.count("/") > 1
        or "\\" in path
        or Path(name).suffix in (*SUFFIXES, ".csv", ".txt", ".gz")
    )


def _nearest(path: Path) -> str:
    """A hint at the file that was probably meant, or nothing."""
    if not path.parent.is_dir():
        return f" (nor a folder {str(path.parent)!r})"
    near = difflib.get_close_matches(path.name, [entry.name for entry in path.parent.iterdir()], n=1)
    return f"; did you mean {str(path.parent / near[0])!r}?" if near else f" (the folder has {_listing(path.parent)})"


def _listing(folder: Path) -> str:
    names = sorted(entry.name for entry in folder.iterdir() if not entry.name.startswith("."))
    return ", ".join(names[:5]) + (", ..." if len(names) > 5 else "") if names else "nothing in it"
