"""Files that grow line by line, so that work which was stopped goes on where it stopped."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from lit_align.errors import UserError

Row = dict[str, Any]

SUFFIXES = (".jsonl", ".parquet")
"""What the files of a pipeline may end in."""


class Records:
    """A file with one JSON object a line that is only ever appended to.

    Lines are on the disk when `append` returns. A line that was being written when the process died is cut off when the file
    is next opened, so every line that is there is whole.

    Args:
        file: Made where it is not there.
    """

    def __init__(self, file: Path) -> None:
        self.file = file
        file.parent.mkdir(parents=True, exist_ok=True)
        with file.open("a+b") as content:
            content.seek(0)
            whole = 0
            self._count = 0
            for line in content:
                if not line.endswith(b"\n"):
                    break
                whole += len(line)
                self._count += 1
            content.truncate(whole)

    def __len__(self) -> int:
        """Lines in the file."""
        return self._count

    def append(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Writes rows behind those that are there, in their order."""
        with self.file.open("ab") as content:
            content.write(b"".join(map(as_line, rows)))
            content.flush()
            os.fsync(content.fileno())
        self._count += len(rows)

    def read(self) -> list[Row]:
        """All rows."""
        with self.file.open("rb") as lines:
            return [json.loads(line) for line in lines]


def as_line(row: Mapping[str, Any]) -> bytes:
    """A row as one line of JSON, as people read it."""
    return json.dumps(row, ensure_ascii=False).encode("utf-8", errors="backslashreplace") + b"\n"


def digest(rows: Iterable[object]) -> str:
    """What tells one sequence of JSON values from another, in 16 characters."""
    total = hashlib.sha256()
    for row in rows:
        total.update(json.dumps(row, sort_keys=True).encode() + b"\n")
    return total.hexdigest()[:16]


def settings_file(out: Path) -> Path:
    """Where it says what a file was made with."""
    return out.with_name(f"{out.name}.settings.json")


def begin(out: Path, settings: Mapping[str, Any], *beside: Path) -> Row:
    """Says beside a file what it is about to be made with, or makes sure that it was begun with the same.

    Args:
        out: The file.
        settings: Whatever decides what stands in it. Keys are said to people where they differ.
        beside: Other files that belong to it.

    Returns:
        What stands in the settings file: `settings`, and what `note` added to it.

    Raises:
        UserError: The file is there and was made with something else, or by somebody else; or its ending is none of `SUFFIXES`.
    """
    if out.suffix not in SUFFIXES:
        raise UserError(f"{out}: name a file that ends in {' or '.join(SUFFIXES)}.")
    known = settings_file(out)
    settings = json.loads(json.dumps(settings))
    if not known.exists():
        if found := [file for file in (out, *beside) if file.exists()]:
            raise UserError(
                f"{found[0]} is there already, and no {known.name} says what it was made with. Name another file with --out, "
                "or remove it."
            )
        write_whole(known, json.dumps(settings, indent=2) + "\n")
        return dict(settings)
    then: Row = json.loads(known.read_bytes())
    changed = [
        f"{key} ({_short(then.get(key))} then, {_short(settings[key])} now)"
        for key in settings
        if then.get(key) != settings[key]
    ]
    if changed:
        raise UserError(
            f"{out} was begun with other settings: {', '.join(changed)}. Go on with the same, name another file with --out, or "
            f"remove it and {known.name}."
        )
    return then


def note(out: Path, settings: Mapping[str, Any]) -> None:
    """Replaces what `begin` wrote."""
    write_whole(settings_file(out), json.dumps(settings, indent=2) + "\n")


def write_whole(file: Path, content: str) -> None:
    """Writes a file whole or not at all."""
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_name(file.name + ".partial")
    with partial.open("w", encoding="utf-8", errors="backslashreplace") as opened:
        opened.write(content)
        opened.flush()
        os.fsync(opened.fileno())
    partial.replace(file)


def write_rows(file: Path, rows: Sequence[Row]) -> None:
    """Writes rows as JSONL or Parquet, by the ending, whole or not at all.

    Raises:
        UserError: Parquet cannot hold them, because a column has values of several kinds.
    """
    if file.suffix == ".jsonl":
        write_whole(file, b"".join(map(as_line, rows)).decode())
        return
    import pyarrow
    import pyarrow.parquet

    partial = file.with_name(file.name + ".partial")
    try:
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), partial)
    except (pyarrow.ArrowInvalid, pyarrow.ArrowTypeError) as error:
        raise UserError(
            f"{file}: Parquet cannot hold these rows ({error}). Name a file that ends in .jsonl."
        ) from error
    partial.replace(file)


def _short(value: object) -> str:
    text = json.dumps(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
