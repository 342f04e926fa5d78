"""Rows that stay on disk: an index of where they are, and their encoding when a batch needs them."""

from __future__ import annotations

import hashlib
import zlib
from array import array
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import cast

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import Dataset
from transformers import PreTrainedTokenizerBase

from lit_align.data.counts import Counts
from lit_align.data.encoding import Encoder, Lengths
from lit_align.data.files import Source
from lit_align.data.row_reader import RowError
from lit_align.data.schema import read_group
from lit_align.data.stored import StoredRows, open_stored
from lit_align.data.token_groups import Fingerprint, TokenGroups, offsets_of, said
from lit_align.errors import UserError
from lit_align.groups import Group, TokenGroup

SAMPLE = 100
"""Rows that are encoded before the first batch."""


class StreamedGroups(Dataset[TokenGroup]):
    """A data set of `TokenGroup`s of which only an index is held, 20 bytes a row: place, number, responses, and a hash.

    The index is made in one pass, in which every row is read and checked, and none is encoded but a sample: it finds
    a chat template that does not fit before the first batch, and says what is cut.

    Args:
        groups: Every row that is to be served, in order, as `accept` gave it. Its `source` is a `Source`.
        counts: Where the rows are counted; says what happens to bad ones.
        accept: Makes of a row as its kind has it the group to encode.
        columns: As in `read_group`.
        tokenizer: As in `Encoder`.
        lengths: As in `Encoder`; `too_long` does not drop.

    Raises:
        RowError: A row of the sample cannot be encoded.
        ValueError: Some groups have scores (labels) and others have none.
    """

    def __init__(
        self,
        groups: Iterable[Group],
        counts: Counts,
        *,
        accept: Callable[[Group], Group | None],
        columns: Mapping[str, str] | None,
        tokenizer: PreTrainedTokenizerBase,
        lengths: Lengths,
    ) -> None:
        self._accept = accept
        self._columns = columns
        self._skips = counts.on_bad_row == "skip"
        text = self._index(groups)
        counts.groups, counts.responses = len(self), int(self._sizes.sum())
        self.sample = Counts()
        self._encoder = Encoder(tokenizer, lengths, self.sample)
        self.fingerprint = Fingerprint(len(self), text, self._hash_of_encoding(text))

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, row: int) -> TokenGroup:
        return self.fetch([row])[0]

    def fetch(self, rows: Sequence[int]) -> list[TokenGroup]:
        """These rows, read and encoded now.

        Raises:
            RowError: One cannot be encoded.
            UserError: One is too long where that is an error, or a file was changed since the index was made.
        """
        groups = self._read(rows)
        try:
            encoded = {group.source: tokens for group, tokens in self._encoder.encode(groups)}
        except RowError as error:
            skips = " Streamed rows are encoded one batch at a time, so on_bad_row: skip cannot leave it out."
            raise RowError(f"{error}{skips if self._skips else ''}") from error
        for group in groups:
            if group.source not in encoded:
                raise UserError(
                    f"{group.source}: the early stop lies beyond max_length, and streamed rows cannot be left out. Raise "
                    "max_length, or leave data.streaming out."
                )
        return [self._as_all(encoded[group.source], row) for row, group in zip(rows, groups, strict=True)]

    @property
    def n_desirable(self) -> int:
        """As in `TokenGroups`."""
        return self._n_desirable

    @property
    def response_offsets(self) -> NDArray[np.int64]:
        """As in `TokenGroups`."""
        return offsets_of(self._sizes)

    @property
    def prompt_keys(self) -> NDArray[np.uint32]:
        """A number for the text of each row's prompt, the same where they are the same, `(rows,)`."""
        return self._prompts

    @property
    def longest(self) -> int:
        """The most tokens that a prompt and one of its responses may have together."""
        return self._encoder.lengths.max_length

    def _index(self, groups: Iterable[Group]) -> str:
        """Notes where the rows are and what is known of them; a hash of what they say."""
        self._stored: list[StoredRows] = []
        begins, places, numbers, sizes, prompts = array("q"), array("q"), array("I"), array("I"), array("I")
        text = hashlib.blake2b(digest_size=16)
        known, self._has_weights, self._n_desirable = set(), False, 0
        for group in groups:
            source = cast("Source", group.source)
            if not self._stored or self._stored[-1].name != source.name:
                self._stored.append(open_stored(source.name))
                begins.append(len(places))
            places.append(source.place)
            numbers.append(source.number)
            sizes.append(len(group.responses))
            prompts.append(zlib.crc32(repr(group.prompt).encode()))
            text.update(said(group))
            known.add((group.scores is None, group.labels is None))
            self._n_desirable += sum(group.labels or ())
            self._has_weights = self._has_weights or group.weights is not None
        if len(known) > 1:
            raise ValueError("Some groups have scores or labels and others have none.")
        self._begins, self._places = np.array(begins, dtype=np.int64), np.array(places, dtype=np.int64)
        self._numbers, self._sizes = np.array(numbers, dtype=np.uint32), np.array(sizes, dtype=np.uint32)
        self._prompts = np.array(prompts, dtype=np.uint32)
        return text.hexdigest()

    def _read(self, rows: Sequence[int]) -> list[Group]:
        """The rows as text, each file opened once."""
        of_file: dict[int, list[int]] = {}
        for row, file in zip(rows, np.searchsorted(self._begins, rows, side="right") - 1, strict=True):
            of_file.setdefault(int(file), []).append(row)
        groups = {}
        for file, wanted in of_file.items():
            stored = self._stored[file]
            for row, read in zip(wanted, stored.rows(self._places[wanted].tolist()), strict=True):
                source = Source(stored.name, int(self._numbers[row]), int(self._places[row]))
                group = self._accept(read_group(read, source, self._columns))
                assert group is not None, f"{source} was accepted before"
                groups[row] = group
        return [groups[row] for row in rows]

    def _as_all(self, tokens: TokenGroup, row: int) -> TokenGroup:
        """A row with its number, and with weights if any row has some."""
        if self._has_weights and tokens.weights is None:
            tokens = tokens._replace(weights=[[1.0] * len(response) for response in tokens.responses])
        return tokens._replace(row=row)

    def _hash_of_encoding(self, text: str) -> str:
        """Stands for the encoded rows: a hash of their text, of what decides how they are encoded, and of a sample."""
        tokenizer = self._encoder.tokenizer
        rows = np.linspace(0, len(self) - 1, min(len(self), SAMPLE)).astype(np.int64).tolist()
        of_encoding = hashlib.blake2b(text.encode(), digest_size=16)
        for fact in (self._encoder.lengths, tokenizer.chat_template, sorted(tokenizer.get_vocab().items())):
            of_encoding.update(repr(fact).encode())
        for tokens in self.fetch(rows) if rows else ():
            of_encoding.update(repr((list(tokens.prompt), list(map(list, tokens.responses)))).encode())
        return f"streamed {of_encoding.hexdigest()}"


EncodedGroups = TokenGroups | StreamedGroups
"""A data set as a loader takes it."""
