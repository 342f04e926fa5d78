"""What a data set holds, and what would become of it, before anything is trained on it."""

from __future__ import annotations

import hashlib
from array import array
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice

import numpy as np
from transformers import PreTrainedTokenizerBase

from lit_align.data.base import GroupDataModule
from lit_align.data.counts import Counts
from lit_align.data.encoding import Encoder, Lengths
from lit_align.data.modules import LabelData, PreferenceData, RankingData, SFTData
from lit_align.data.prompts import read_prompt
from lit_align.data.row_reader import Row, RowError
from lit_align.data.rows import read_rows
from lit_align.data.schema import Schema, find_schema, read_group
from lit_align.groups import Group, Text

DATA_MODULES: tuple[type[GroupDataModule], ...] = (SFTData, PreferenceData, RankingData, LabelData)
PROMPT_ALONE = "prompt alone"
BLOCKS = "▁▂▃▄▅▆▇█"


@dataclass
class Overview:
    """Counts over the rows of one data set, filled by `survey`.

    Args:
        kinds: Rows by their kind: its name and the columns that were read.
        unread: Rows by column that their kind does not read.
        bad: Counts the rows that cannot be used, and keeps the first reasons.
        sizes: Rows by their number of responses K.
        takes: Rows by the name of each DataModule that learns from them.
        ties: Rows by the name of each DataModule that would drop them, because their responses tie.
        labels: Responses by their label.
        extras: Rows by what else they carry: margins, weights.
        repeated: Rows whose prompt and responses an earlier row has too.
        echoes: Rows two of whose responses are the same.
        prompts: Hashes of the different prompts.
        prompt_lengths: In tokens, or in characters where no tokenizer was given; one a row.
        response_lengths: The same, one a response.
        first: The first rows.
    """

    kinds: Counter[str] = field(default_factory=Counter)
    unread: Counter[str] = field(default_factory=Counter)
    bad: Counts = field(default_factory=lambda: Counts("skip"))
    sizes: Counter[int] = field(default_factory=Counter)
    takes: Counter[str] = field(default_factory=Counter)
    ties: Counter[str] = field(default_factory=Counter)
    labels: Counter[bool] = field(default_factory=Counter)
    extras: Counter[str] = field(default_factory=Counter)
    repeated: int = 0
    echoes: int = 0
    prompts: set[bytes] = field(default_factory=set)
    prompt_lengths: array[int] = field(default_factory=lambda: array("q"))
    response_lengths: list[array[int]] = field(default_factory=list)
    first: list[Group] = field(default_factory=list)

    @property
    def longest(self) -> list[int]:
        """Of each row the prompt with its longest response."""
        pairs = zip(self.prompt_lengths, self.response_lengths, strict=True)
        return [prompt + max(responses, default=0) for prompt, responses in pairs]

    def cuts(self, lengths: Lengths) -> tuple[int, int, int]:
        """How many prompts and responses would be cut, and in how many rows."""
        prompts = responses = rows = 0
        for prompt, of_row in zip(self.prompt_lengths, self.response_lengths, strict=True):
            room, left = lengths.room(prompt, max(of_row, default=0))
            cut = sum(length > left for length in of_row)
            prompts, responses, rows = prompts + (prompt > room), responses + cut, rows + (prompt > room or cut > 0)
        return prompts, responses, rows


def survey(
    name: str,
    columns: Mapping[str, str] | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
    max_rows: int | None = None,
    show: int = 3,
) -> Overview:
    """Reads a data set from beginning to end; bad rows are counted and passed over.

    Args:
        name: As in `read_groups`.
        columns: As in `read_groups`.
        tokenizer: Lengths are in its tokens; in characters without one.
        max_rows: Reads only so many rows.
        show: How many rows to keep in `first`.

    Raises:
        UserError: There is no such data set, or the tokenizer cannot encode it at all.
    """
    overview = Overview()
    groups = _noted(_groups(name, columns, max_rows, overview), overview, show)
    if tokenizer is None:
        for group in groups:
            _measure(overview, len(as_text(group.prompt)), map(len, group.responses))
    else:
        for _, tokens in Encoder(tokenizer, Lengths(max_length=2**62), overview.bad).encode(groups):
            _measure(overview, len(tokens.prompt), map(len, tokens.responses))
    return overview


def as_text(prompt: Text) -> str:
    """A prompt as a person reads it without a chat template."""
    return prompt if isinstance(prompt, str) else "\n".join(f"{turn['role']}: {turn['content']}" for turn in prompt)


def histogram(values: Sequence[int], bins: int = 16) -> str:
    """How values are spread from 0 to their 99% quantile, a block character for each of as many equal steps.

    What lies beyond is in the last one. A step with anything in it is never blank.
    """
    end = max(float(np.quantile(values, 0.99)), 1.0)
    counts, _ = np.histogram(np.minimum(values, end), bins=bins, range=(0.0, end))
    heights = np.ceil(counts / counts.max() * len(BLOCKS)).astype(int)
    return "".join(" " if height == 0 else BLOCKS[height - 1] for height in heights)


def _groups(name: str, columns: Mapping[str, str] | None, max_rows: int | None, overview: Overview) -> Iterator[Group]:
    for source, row in islice(read_rows(name), max_rows):
        try:
            if isinstance(row, RowError):
                raise row
            schema, ours = _kind(row, source, columns)
            group = (
                Group(read_prompt(row, source, columns), (), source=source)
                if schema is None
                else read_group(row, source, columns)
            )
        except RowError as error:
            overview.bad.bad_row(error)
            continue
        read = ["prompt"] if schema is None else [c for c in (*schema.required, *schema.optional) if c in ours]
        overview.kinds[f"{PROMPT_ALONE if schema is None else schema.name}: {' + '.join(read)}"] += 1
        overview.unread.update(column for column in ours if column not in read)
        yield group


def _kind(row: object, source: str, columns: Mapping[str, str] | None) -> tuple[Schema | None, Row]:
    """A row's kind and its columns under our names; no kind for a prompt without responses."""
    try:
        return find_schema(row, source, columns)
    except RowError:
        prompt = "prompt" if columns is None else columns.get("prompt")
        if not isinstance(row, Mapping) or prompt not in row:
            raise
        return None, row if columns is None else {"prompt": row[prompt]}


def _noted(groups: Iterator[Group], overview: Overview, show: int) -> Iterator[Group]:
    """The groups, counted as they pass."""
    modules = [kind("rows") for kind in DATA_MODULES]
    rows: set[bytes] = set()
    for group in groups:
        prompt, row = _hash(group.prompt), _hash((group.prompt, group.responses))
        overview.repeated += row in rows
        rows.add(row)
        if group.prompt:
            overview.prompts.add(prompt)
        overview.echoes += len(set(group.responses)) < len(group.responses)
        overview.sizes[len(group.responses)] += 1
        overview.labels.update(group.labels or ())
        carried = {"margins": group.margin != 0, "weights": group.weights is not None}
        overview.extras.update(what for what, is_there in carried.items() if is_there)
        for module in modules:
            try:
                (overview.ties if module.accept(group) is None else overview.takes)[type(module).__name__] += 1
            except RowError:
                continue
        if len(overview.first) < show:
            overview.first.append(group)
        yield group


def _measure(overview: Overview, prompt: int, responses: Iterator[int]) -> None:
    overview.prompt_lengths.append(prompt)
    overview.response_lengths.append(array("q", responses))


def _hash(value: object) -> bytes:
    return hashlib.blake2b(repr(value).encode(), digest_size=16).digest()
