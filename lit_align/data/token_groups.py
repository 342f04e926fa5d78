"""Encoded rows, held as a few flat arrays."""

from __future__ import annotations

import hashlib
import zlib
from array import array
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from itertools import pairwise, repeat
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import Dataset

from lit_align.groups import Group, TokenGroup


class Fingerprint(NamedTuple):
    """What tells one encoded data set from another.

    Args:
        rows: Number of groups.
        text: Hash of the groups as text: what the rows say, in order.
        tokens: Hash of the encoded groups, so also of tokenizer, chat template and lengths.
    """

    rows: int
    text: str
    tokens: str


ARRAYS = ("ids", "id_offsets", "response_offsets", "scores", "labels", "margins", "weights", "source_offsets")
"""What `TokenGroups` holds, besides the text of its sources."""


class TokenGroups(Dataset[TokenGroup]):
    """A data set of `TokenGroup`s in flat arrays: token ids one behind the other, with offsets.

    Flat arrays and not an Arrow table of `datasets`: a batch of 64 pairs of about 175-token sequences is fetched in 0.6 ms
    instead of 1.0 ms (one core), and the workers of a DataLoader share the memory, because there are no Python objects in it
    whose reference counts would have it copied.

    Args:
        groups: Groups as text, each with its encoding. All have scores or none has; the same for labels. Where some have
            weights, the tokens of the others weigh 1.
    """

    def __init__(self, groups: Iterable[tuple[Group, TokenGroup]]) -> None:
        ids, lengths, sizes = array("i"), array("q"), array("q")
        scores, labels, margins, weights = array("d"), array("b"), array("d"), array("f")
        sources, source_lengths = bytearray(), array("q")
        text = hashlib.blake2b(digest_size=16)
        for group, tokens in groups:
            for sequence in (tokens.prompt, *tokens.responses):
                ids.extend(sequence)
                lengths.append(len(sequence))
            if tokens.weights is not None:
                # One for each of `ids`: 1 for whatever came since the last group with weights, and for the prompt.
                weights.extend(repeat(1.0, len(ids) - sum(map(len, tokens.weights)) - len(weights)))
                for of_response in tokens.weights:
                    weights.extend(of_response)
            sizes.append(len(tokens.responses))
            scores.extend(tokens.scores or ())
            labels.extend(tokens.labels or ())
            margins.append(tokens.margin)
            source = group.source.encode()
            sources += source
            source_lengths.append(len(source))
            text.update(said(group))
        self._ids = np.array(ids, dtype=np.int32)
        self._id_offsets = offsets_of(lengths)
        self._response_offsets = offsets_of(sizes)
        self._scores = _for_all(np.array(scores, dtype=np.float64), self.n_responses, "scores")
        self._labels = _for_all(np.array(labels, dtype=np.bool_), self.n_responses, "labels")
        self._margins = np.array(margins, dtype=np.float64)
        weights.extend(repeat(1.0, len(ids) - len(weights) if weights else 0))
        self._weights = np.array(weights, dtype=np.float32) if weights else None
        self._sources = bytes(sources)
        self._source_offsets = offsets_of(source_lengths)
        self._text = text.hexdigest()

    @classmethod
    def of_arrays(cls, arrays: Mapping[str, NDArray[Any]], text: str) -> TokenGroups:
        """The data set whose `arrays` these are, and whose `Fingerprint.text` this is."""
        groups = cls.__new__(cls)
        for name in ARRAYS:
            setattr(groups, f"_{name}", arrays.get(name))
        groups._sources = arrays["sources"].tobytes()
        groups._text = text
        return groups

    def arrays(self) -> dict[str, NDArray[Any]]:
        """All that is held, by name; none for what no row has."""
        held = {name: getattr(self, f"_{name}") for name in ARRAYS}
        held["sources"] = np.frombuffer(self._sources, dtype=np.uint8)
        return {name: values for name, values in held.items() if values is not None}

    def __len__(self) -> int:
        return len(self._margins)

    @property
    def n_responses(self) -> int:
        """Number of responses in all groups."""
        return int(self._response_offsets[-1])

    @property
    def n_desirable(self) -> int:
        """Number of responses that are labelled desirable."""
        return 0 if self._labels is None else int(self._labels.sum())

    def __getitem__(self, row: int) -> TokenGroup:
        if not 0 <= row < len(self):
            raise IndexError(f"row {row} of {len(self)}")
        first, last = (int(offset) for offset in self._response_offsets[row : row + 2])
        # Each group before this one has a prompt in `_ids` besides its responses.
        cuts = self._id_offsets[first + row : last + row + 2].tolist()
        prompt, *responses = (self._ids[a:b].tolist() for a, b in pairwise(cuts))
        weights = None if self._weights is None else [self._weights[a:b].tolist() for a, b in pairwise(cuts[1:])]
        return TokenGroup(
            prompt,
            responses,
            None if self._scores is None else self._scores[first:last].tolist(),
            None if self._labels is None else self._labels[first:last].tolist(),
            float(self._margins[row]),
            row,
            weights,
        )

    def fetch(self, rows: Sequence[int]) -> list[TokenGroup]:
        """Several rows."""
        return [self[row] for row in rows]

    @property
    def response_offsets(self) -> NDArray[np.int64]:
        """Number of responses before each row, and at the end the number of all, `(rows + 1,)`."""
        return self._response_offsets

    @property
    def has_weights(self) -> bool:
        """Whether any row weighs its tokens."""
        return self._weights is not None

    @property
    def prompt_keys(self) -> NDArray[np.uint32]:
        """A number for the tokens of each row's prompt, the same where they are the same, `(rows,)`."""
        begins, ends = self._id_offsets[self._prompts], self._id_offsets[self._prompts + 1]
        return np.array(
            [zlib.crc32(self._ids[a:b].tobytes()) for a, b in zip(begins, ends, strict=True)], dtype=np.uint32
        )

    @property
    def longest(self) -> int:
        """The most tokens that a prompt and one of its responses have together; every row has a response."""
        return int(self.sizes[1].max())

    @property
    def sizes(self) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
        """Of each row its responses, the tokens of its prompt and longest response together, and those of all, `(rows,)`."""
        lengths = np.diff(self._id_offsets)
        of_responses = np.maximum.reduceat(np.delete(lengths, self._prompts), self._response_offsets[:-1])
        total = np.add.reduceat(lengths, self._prompts)
        return np.diff(self._response_offsets), lengths[self._prompts] + of_responses, total

    def source(self, row: int) -> str:
        """Where a row came from: "rows.jsonl, row 12"."""
        first, last = self._source_offsets[row : row + 2]
        return self._sources[first:last].decode()

    @property
    def _prompts(self) -> NDArray[np.int64]:
        """Which of the sequences in `_ids` are prompts: each group before has one besides its responses."""
        return self._response_offsets[:-1] + np.arange(len(self))

    @cached_property
    def fingerprint(self) -> Fingerprint:
        """What these rows are, encoded as they are."""
        tokens = hashlib.blake2b(digest_size=16)
        of_responses = (self._scores, self._labels, self._margins, self._weights)
        for values in (self._ids, self._id_offsets, self._response_offsets, *of_responses):
            tokens.update(b"-" if values is None else values.tobytes())
        return Fingerprint(len(self), self._text, tokens.hexdigest())


def said(group: Group) -> bytes:
    """What a row says, without where it stands, as `Fingerprint.text` hashes it."""
    return repr(replace(group, source="")).encode()


def offsets_of(lengths: Sequence[int] | NDArray[np.uint32]) -> NDArray[np.int64]:
    """Where each of the pieces begins, and where the last one ends."""
    return np.concatenate([np.zeros(1, dtype=np.int64), np.cumsum(np.array(lengths, dtype=np.int64))])


def _for_all(values: NDArray[Any], n_responses: int, what: str) -> NDArray[Any] | None:
    if len(values) not in (0, n_responses):
        raise ValueError(f"Some groups have {what} and others have none.")
    return values if len(values) else None
