"""Encoded rows on disk: a second start reads what the first one encoded.

A file is named by a hash of all that decides what is in it, so none is ever out of date: rows, settings, tokenizer, template,
and the code that encodes. It is written under another name first, and damage is told by a checksum.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import tokenizers
import transformers
from lightning.pytorch import Trainer
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file
from transformers import PreTrainedTokenizerBase

from lit_align import groups
from lit_align.data.counts import Counts
from lit_align.data.rows import files_of, table_of
from lit_align.data.token_groups import TokenGroups
from lit_align.errors import UserError

if TYPE_CHECKING:
    from lit_align.data.base import GroupDataModule

OF_RUN = {
    "trainer", "prepare_data_per_node", "allow_zero_length_dataloader_with_multiple_devices", "_log_hyperparams",
    "names", "max_rows", "batch_size", "val_batch_size", "tokens_per_batch", "seed", "layout",
    "num_workers", "streaming", "cache",
    "tokenizer", "_encoder_tokenizer", "_own_tokenizer", "_encoded", "_rows", "_positioned", "_restored",
}  # fmt: skip
"""Attributes of a DataModule that do not decide how a row is encoded, or are named by `cache_file` itself."""

CHUNK = 1 << 20


def cache_file(
    data: GroupDataModule, names: list[str], max_rows: int | None, tokenizer: PreTrainedTokenizerBase
) -> Path:
    """Where the encoded rows of these data sets are, whether or not they are there yet.

    Args:
        data: Its class, and what was set on it, decide which rows are accepted and how they are encoded.
        names: Of data sets, none of them embedded.
        max_rows: Only so many of the rows; None for all.
        tokenizer: What encodes, as it is after its first call.

    Raises:
        UserError: It cannot be told whether the rows would be encoded the same the next time.
    """
    digest = hashlib.blake2b(digest_size=16)
    facts = (names, max_rows, _settings(data), _template(tokenizer), transformers.__version__, tokenizers.__version__)
    digest.update(repr(facts).encode())
    digest.update(_vocabulary(tokenizer).encode())
    for file in [*_code(type(data)), *(file for name in names for file in _files(name))]:
        digest.update(repr(file.name).encode() + _hash_of(file))
    return Path(str(data.cache)) / f"{digest.hexdigest()}.safetensors"


def read_or_encode(file: Path, counts: Counts, encode: Callable[[], TokenGroups], *, writes: bool) -> TokenGroups:
    """The rows of a cache file, or encoded now, and then written unless `writes` is False. Either way they are counted."""
    found = _read(file, counts)
    if found is not None:
        rank_zero_info(f"Encoded rows read from {file}")
        return found
    encoded = encode()
    if writes and len(encoded):
        try:
            _write(file, encoded, counts)
        except OSError as error:
            rank_zero_warn(f"The encoded rows could not be kept for the next start: {error}. Set data.cache elsewhere.")
    return encoded


def one_rank_first(trainer: Trainer | None, make: Callable[[], TokenGroups]) -> TokenGroups:
    """What `make` makes, on rank 0 first, so that the others find the file that it wrote. Every rank has to call.

    Raises:
        UserError: Rank 0 failed.
    """
    if trainer is None or trainer.world_size == 1:
        return make()
    made, failure = None, None
    if trainer.global_rank == 0:
        try:
            made = make()
        except Exception as error:  # the others would wait for ever
            failure = error
    told = trainer.strategy.broadcast(None if failure is None else str(failure))
    if failure is not None:
        raise failure
    if told is not None:
        raise UserError(told)
    return make() if made is None else made


def _read(file: Path, counts: Counts) -> TokenGroups | None:
    """The rows of a file, their counts noted in `counts`; None where there is no file or it is damaged."""
    if not os.path.exists(file):  # and not `file.exists()`, which raises where the folder may not be looked into
        return None
    try:
        with safe_open(file, framework="numpy") as opened:
            noted = opened.metadata() or {}
            arrays = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118  it is no dict
        if noted.get("checksum") == _checksum(arrays, noted):
            for name, count in json.loads(noted["counts"]).items():
                setattr(counts, name, count)
            return TokenGroups.of_arrays(arrays, noted["text"])
        reason = "its checksum does not fit"
    except (OSError, SafetensorError) as error:
        reason = str(error)
    rank_zero_warn(f"{file} is damaged ({reason}), so the rows are encoded anew.")
    return None


def _write(file: Path, encoded: TokenGroups, counts: Counts) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    arrays = encoded.arrays()
    noted = {"counts": json.dumps(asdict(counts)), "text": encoded.fingerprint.text}
    partial = file.with_suffix(f".{os.getpid()}.tmp")
    try:
        save_file(arrays, partial, {**noted, "checksum": _checksum(arrays, noted)})
        partial.replace(file)
    except SafetensorError as error:
        raise OSError(str(error)) from error
    finally:
        partial.unlink(missing_ok=True)


def _checksum(arrays: Mapping[str, NDArray[Any]], noted: Mapping[str, str]) -> str:
    digest = hashlib.blake2b(f"{noted.get('counts')} {noted.get('text')}".encode(), digest_size=16)
    for name in sorted(arrays):
        digest.update(name.encode())
        digest.update(arrays[name].tobytes())
    return digest.hexdigest()


def _settings(data: GroupDataModule) -> list[tuple[str, str]]:
    """What was set on a DataModule, its class's own settings among it, as text."""
    set_ = sorted((name, repr(value)) for name, value in vars(data).items() if name not in OF_RUN)
    for name, text in set_:
        if " at 0x" in text:
            raise UserError(
                f"data.cache: {type(data).__name__}.{name} is {text}, of which there is no telling whether it will be the same "
                "the next time. Give its class a __repr__ that says what it holds, or leave data.cache out."
            )
    return set_


def _template(tokenizer: PreTrainedTokenizerBase) -> tuple[str, ...]:
    """The chat template, the tokens that it and the encoder write, and the day where the template asks for it."""
    template = repr(tokenizer.chat_template)
    day = str(date.today()) if "strftime_now" in template else ""  # the local one, as in templates
    return template, repr(sorted(tokenizer.special_tokens_map.items())), day


def _vocabulary(tokenizer: PreTrainedTokenizerBase) -> str:
    if not tokenizer.is_fast:
        raise UserError(
            f"data.cache: {type(tokenizer).__name__} has no tokenizer.json by which it could be recognised. Take a tokenizer "
            "that has one, or leave data.cache out."
        )
    parts = json.loads(cast("Any", tokenizer).backend_tokenizer.to_str())
    # Set by each call, which the encoder makes without either.
    kept = {name: part for name, part in parts.items() if name not in ("truncation", "padding")}
    # Set by each call, too, but by the tokenizer itself, and left out of its tokenizer.json.
    return json.dumps([kept, tokenizer.split_special_tokens])


def _code(kind: type) -> Iterator[Path]:
    """The files of the code that reads and encodes: those beside this one, and those of classes derived elsewhere."""
    yield from sorted(Path(__file__).parent.glob("*.py"))
    yield Path(groups.__file__)
    for base in kind.__mro__:
        if base.__module__.partition(".")[0] in ("lit_align", "lightning", "builtins"):
            continue
        try:
            yield Path(inspect.getfile(base))
        except (TypeError, OSError) as error:
            raise UserError(
                f"data.cache: {base.__name__} was written in no file, so there is no telling when it changes. Put it into "
                "one, or leave data.cache out."
            ) from error


def _files(name: str) -> list[Path]:
    """The files in which the rows of a data set are."""
    files = files_of(name) or [Path(part["filename"]) for part in table_of(name).cache_files]
    if not files:
        raise UserError(f"data.cache: `datasets` holds {name!r} in memory, and in no file: leave data.cache out.")
    return files


def _hash_of(file: Path) -> bytes:
    digest = hashlib.blake2b(digest_size=16)
    with file.open("rb") as opened:
        while chunk := opened.read(CHUNK):
            digest.update(chunk)
    return digest.digest()
