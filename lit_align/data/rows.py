"""Files, folders and hub names to rows, and rows to `Group`s."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from lit_align.data.counts import Counts
from lit_align.data.files import READERS, Rows, Source, listing, read_file, shards
from lit_align.data.row_reader import RowError
from lit_align.data.schema import read_group
from lit_align.errors import UserError
from lit_align.groups import Group


def read_groups(name: str, counts: Counts, columns: Mapping[str, str] | None = None) -> Iterator[Group]:
    """The rows of one data set, in order, as groups.

    Args:
        name: A `.jsonl`, `.json`, `.csv` or `.parquet` file, a folder of such files or one that `datasets` saved, or a hub
            name; a folder optionally with a split, "folder:train", a hub name also with a configuration,
            "name@configuration:train".
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


def accepted(groups: Iterable[Group], accept: Callable[[Group], Group | None], counts: Counts) -> Iterator[Group]:
    """The groups as `accept` has them; counted are those that tie, of which it makes None, bad rows, and improvements."""
    for group in groups:
        try:
            taken = accept(group)
        except RowError as error:
            counts.bad_row(error)
            continue
        if taken is None:
            counts.ties += 1
        else:
            counts.edited += group.edited
            yield taken


def is_hub_name(name: str) -> bool:
    """Whether a name of a data set can only be one on the hub, because nothing of this machine goes by it."""
    return (
        not Path(name).exists() and not Path(parse_name(name)[0]).exists() and not _looks_like_path(parse_name(name)[0])
    )


def load_from_hub(name: str) -> Any:
    """A data set of the hub, from the cache where it is there.

    Raises:
        UserError: There is none, it cannot be reached, or it has several configurations or splits and the name says none.
    """
    import datasets

    path, configuration, split = parse_name(name)
    try:
        loaded = datasets.load_dataset(path, name=configuration, split=split)
    except (OSError, ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        hint = f" Name one as in {path}@default:train." if "Config name is missing" in reason else ""
        raise UserError(
            f"{name!r} is no file or folder here{_nearest(Path(path))}, and could not be had from the hub: {reason}{hint}"
        ) from error
    return _one_split(loaded, name, split)


def read_rows(name: str) -> Rows:
    """The rows of one data set, in order, as they stand there.

    Args:
        name: As in `read_groups`.

    Yields:
        Pairs of source and row; a row is a `RowError` where it cannot even be parsed.

    Raises:
        UserError: There is no such file or data set, or it cannot be read at all.
    """
    files = files_of(name)
    for file in files:
        yield from read_file(file)
    if not files:
        for place, row in enumerate(table_of(name)):
            yield Source(name, place + 1, place), row


def files_of(name: str) -> list[Path]:
    """The files that a name stands for, in order; none where it is a data set that `datasets` reads.

    Raises:
        UserError: It is a folder that holds no data set, several, or none of that split.
    """
    if Path(name).is_file():
        return [Path(name)]
    path, configuration, split = (name, None, None) if Path(name).is_dir() else parse_name(name)
    folder = Path(path)
    if not folder.is_dir():
        return []
    if configuration is not None:
        raise UserError(f"{path!r} is a folder, and only data sets of the hub have configurations: leave out the @.")
    if any((folder / mark).exists() for mark in ("state.json", "dataset_dict.json")):
        return []
    return shards(folder, split)


def table_of(name: str) -> Any:
    """A folder that `datasets` saved, or a data set of the hub, by its name.

    Raises:
        UserError: There is none, it cannot be read, or it has several splits and the name says none.
    """
    folder, _, split = (name, None, None) if Path(name).is_dir() else parse_name(name)
    if Path(folder).is_dir():
        return _saved_folder(name, folder, split)
    if is_hub_name(name):
        return load_from_hub(name)
    raise UserError(f"There is no file {name!r}{_nearest(Path(name))}.")


def parse_name(name: str) -> tuple[str, str | None, str | None]:
    """Path, configuration and split of "path@configuration:split"; None for what is not named."""
    # A split may be a slice or a sum, "train[:10%]+test"; a path may hold colons of its own.
    found = re.fullmatch(r"(.+?)(?:@([\w.-]+))?(?::([\w\[\]:%+-]+))?", name)
    return (found[1], found[2], found[3]) if found else (name, None, None)


def _saved_folder(name: str, folder: str, split: str | None) -> Any:
    import datasets

    try:
        loaded = datasets.load_from_disk(folder)
    except (OSError, ValueError) as error:
        raise UserError(f"{folder!r} cannot be read as a folder that datasets.save_to_disk wrote: {error}") from error
    if split is not None and not isinstance(loaded, Mapping):
        raise UserError(f"{folder!r} was saved without splits: leave out {':' + split!r}.")
    return _one_split(loaded, name, split)


def _one_split(loaded: Any, name: str, split: str | None) -> Any:
    """The data set itself, where `datasets` gave a dictionary of splits."""
    if not isinstance(loaded, Mapping):
        return loaded
    if split is None and len(loaded) == 1:
        return next(iter(loaded.values()))
    if split not in loaded:
        example = f"{name.removesuffix(f':{split}')}:{next(iter(loaded))}"
        raise UserError(f"{name!r} has the splits {', '.join(loaded)}: name one, as in {example}.")
    return loaded[split]


def _looks_like_path(path: str) -> bool:
    return (
        path.startswith((".", "/", "~"))
        or path.count("/") > 1
        or "\\" in path
        or Path(path).suffix in (*READERS, ".tsv", ".txt", ".gz")
    )


def _nearest(path: Path) -> str:
    """A hint at the file that was probably meant, or nothing."""
    if not path.parent.is_dir():
        return f" (nor a folder {str(path.parent)!r})"
    near = difflib.get_close_matches(path.name, [entry.name for entry in path.parent.iterdir()], n=1)
    return f" (did you mean {str(path.parent / near[0])!r}?)" if near else f" (the folder has {listing(path.parent)})"
