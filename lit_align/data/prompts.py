"""Prompts to sample responses to: rows of any kind without their responses, and the DataModule that serves them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Literal, cast

import torch
from lightning.pytorch.utilities import rank_zero_info
from transformers import PreTrainedTokenizerBase

from lit_align.data.base import GroupDataModule
from lit_align.data.counts import Counts, OnBadRow, with_progress
from lit_align.data.embedded import embedded_prompts, is_embedded
from lit_align.data.encoding import Encoder, Lengths, TooLong
from lit_align.data.row_reader import RowError, RowReader
from lit_align.data.rows import accepted, read_rows
from lit_align.data.schema import read_group
from lit_align.data.token_groups import TokenGroups
from lit_align.errors import UserError
from lit_align.groups import Group, Text, TokenGroup


class PromptBatch:
    """G prompts, each as its row has it and as token ids. A plain class for the reason given in `GroupBatch`.

    Args:
        prompts: Plain text or chat turns, as reward sources see them.
        prompt_ids: Token ids, as the rollout engine takes them: within the length limit, chats with the generation prompt.
        rows: Row numbers of the prompts in their data set.
        is_filler: True for a batch that only keeps ranks in step: responses to it count for nothing.
    """

    def __init__(
        self, prompts: list[Text], prompt_ids: list[list[int]], rows: list[int], is_filler: bool = False
    ) -> None:
        self.prompts = prompts
        self.prompt_ids = prompt_ids
        self.rows = rows
        self.is_filler = is_filler

    def __len__(self) -> int:
        return len(self.prompts)

    def to(self, device: torch.device | str, non_blocking: bool = False) -> PromptBatch:
        """The batch itself: it holds no tensors, because an engine lays out what it samples from in its own way."""
        return self


@dataclass
class PromptCounts(Counts):
    """Counts of one data set of prompts."""

    duplicates: int = 0

    def __str__(self) -> str:
        """One line for the log."""
        parts = [f"{self.groups:,} prompts, {self.tokens:,} tokens"]
        for count, what in (
            (self.duplicates, "duplicates dropped"),
            (self.bad, "bad rows skipped"),
            (self.too_long, "dropped as too long"),
            (self.prompts_cut, "cut on the left"),
        ):
            if count:
                parts.append(f"{count:,} {what}")
        return "; ".join(parts) + "".join(f"\n  skipped: {reason}" for reason in self.reasons)


class PromptEncoder(Encoder):
    """Encodes groups without responses as they would be encoded with some."""

    def _fit(
        self, group: Group, prompt: list[int], responses: list[list[int]], weights: list[list[float]] | None
    ) -> TokenGroup | None:
        limit = self.lengths.max_prompt_length
        if self.lengths.too_long == "raise" and limit is not None and len(prompt) > limit:
            raise UserError(
                f"{group.source}: a prompt of {len(prompt)} tokens exceeds max_prompt_length ({limit}). Raise it, or set "
                "too_long to cut or drop."
            )
        return super()._fit(group, prompt, [], None)


class PromptData(GroupDataModule):
    """Prompts for methods that sample their own responses.

    Rows may be of any kind, their responses are ignored; or have a `prompt` alone, or `messages` that end with the user's
    turn. A prompt that occurred before is dropped.

    Args:
        train: Prompts to train on: a `.jsonl`, `.json`, `.csv` or `.parquet` file, a folder of such files or one that
            `datasets` saved, a hub name, or an embedded task, `mini_instruct` or `mini_assistant`; a split as in `name:train`,
            a configuration of the hub as in `name@configuration:train`. Several, as a list, are read one after the other.
        val: Prompts to validate on.
        batch_size: Prompts in a batch, on each device.
        val_batch_size: The same for validation. `batch_size` if not given.
        seed: Of the order of the training prompts.
        max_rows: Only so many training prompts, from the first on, duplicates not counted. The prompts of an embedded task are
            repeated up to so many (10,000 if not given; 1,000 for validation).
        max_prompt_length: Tokens of a prompt. What is left of the model's positions is for the response.
        too_long: What happens to longer ones: `cut` their beginning, `drop` them, or `raise`.
        on_bad_row: `raise` stops at the first row that is malformed, `skip` leaves it out and reports how many there were.
        columns: Names for rows whose columns go by others: `{prompt: question}`.
        tokenizer: Folder or hub name, for a module that has no `tokenizer` of its own.
    """

    def __init__(
        self,
        train: str | list[str],
        val: str | None = None,
        batch_size: int = 8,
        val_batch_size: int | None = None,
        seed: int = 0,
        max_rows: int | None = None,
        max_prompt_length: int = 512,
        too_long: TooLong = "cut",
        on_bad_row: OnBadRow = "raise",
        columns: dict[str, str] | None = None,
        tokenizer: str | None = None,
    ) -> None:
        if max_prompt_length < 1:
            raise UserError(f"max_prompt_length must be at least 1, got {max_prompt_length}.")
        super().__init__(
            train,
            val,
            batch_size=batch_size,
            val_batch_size=val_batch_size,
            seed=seed,
            max_rows=max_rows,
            max_length=max_prompt_length + 1,
            max_prompt_length=max_prompt_length,
            too_long=too_long,
            on_bad_row=on_bad_row,
            columns=columns,
            tokenizer=tokenizer,
        )
        self._texts: dict[str, list[Text]] = {}

    def accept(self, group: Group) -> Group:
        """The row's prompt, without responses."""
        return Group(group.prompt, (), source=group.source)

    def read(self, counts: PromptCounts) -> Iterator[Group]:
        """The training prompts in the order of their rows, neither encoded nor cut, for who samples without a Trainer.

        Raises:
            UserError: There are no such rows, or a bad one among them.
        """
        return self._read("train", counts)

    def _encode(self, split: Literal["train", "val"], tokenizer: PreTrainedTokenizerBase) -> TokenGroups:
        counts = PromptCounts(self.on_bad_row)
        groups = accepted(self._read(split, counts), self.accept, counts)
        pairs = list(with_progress(PromptEncoder(tokenizer, self.lengths, counts).encode(groups), split, "encoded"))
        names = ", ".join(self.names[split])
        if not pairs:
            raise UserError(f"data.{split}: no prompt of {names} can be used: {counts}")
        rank_zero_info(f"data.{split}: {names}: {counts}")
        self._texts[split] = [group.prompt for group, _ in pairs]
        return TokenGroups(pairs)

    def _read(self, split: Literal["train", "val"], counts: Counts) -> Iterator[Group]:
        limit = self.max_rows if split == "train" else None
        seen: set[str] = set()
        read: Iterable[Group]
        for name in self.names[split]:
            if is_embedded(name):
                # Repeated on purpose: there are few, and each is worth many samples.
                read = embedded_prompts(name, limit, split)
            else:
                read = _unseen(read_prompts(name, counts, self.columns), seen, cast("PromptCounts", counts))
            for group in islice(read, limit):
                yield group
                limit = None if limit is None else limit - 1

    def _collate(self, split: str) -> Callable[[list[TokenGroup]], PromptBatch]:
        return partial(prompt_batch, texts=self._texts[split])


def encoded_prompts(tokenizer: PreTrainedTokenizerBase, prompts: Sequence[Text], max_length: int) -> list[list[int]]:
    """Token ids of prompts as the DataModules encode them, at most `max_length`: a longer prompt loses its beginning.

    Raises:
        UserError: A prompt is empty, or a chat that the template refuses or the tokenizer has no template for.
    """
    groups = [Group(prompt, (), source=f"prompt {number}") for number, prompt in enumerate(prompts, start=1)]
    encoder = PromptEncoder(tokenizer, Lengths(max_length + 1, max_length, "cut"), PromptCounts("raise"))
    return [list(tokens.prompt) for _, tokens in encoder.encode(groups)]


def prompt_batch(groups: Sequence[TokenGroup], texts: Sequence[Text]) -> PromptBatch:
    """Prompts as a batch; `texts` are those of the whole data set, by row."""
    return PromptBatch(
        [texts[group.row] for group in groups],
        [list(group.prompt) for group in groups],
        [group.row for group in groups],
    )


def read_prompts(name: str, counts: Counts, columns: Mapping[str, str] | None = None) -> Iterator[Group]:
    """The prompts of one data set, in order, as groups without responses.

    Args:
        name: As in `read_groups`.
        counts: Says what happens to bad rows, and counts those skipped.
        columns: As in `read_groups`.

    Raises:
        RowError: A row without a usable prompt, unless `counts` skips it; it names file, row and column.
        UserError: There is no such file or data set, or it cannot be read at all.
    """
    for source, row in read_rows(name):
        try:
            if isinstance(row, RowError):
                raise row
            prompt = read_prompt(row, source, columns)
            if not prompt:
                raise RowError(f"{source}: plain text has no prompt to respond to.")
            yield Group(prompt, (), source=source)
        except RowError as error:
            counts.bad_row(error)


def read_prompt(row: object, source: str, columns: Mapping[str, str] | None = None) -> Text:
    """The prompt of a row as its kind has it; of a row without usable responses, the prompt alone.

    The arguments are those of `find_schema`.

    Raises:
        RowError: There is none.
    """
    try:
        return read_group(row, source, columns).prompt
    except RowError:
        # Comparisons may keep turns of the prompt in their responses.
        if not isinstance(row, Mapping) or "chosen" in row:
            raise
        ours = row if columns is None else {name: row.get(theirs) for name, theirs in columns.items()}
        reader = RowReader(ours, source)
        for column in ("prompt", "messages", "conversations"):
            if reader.has(column):
                prompt = reader.prompt(column)
                return prompt if column == "prompt" else reader.led(prompt)
        raise


def _unseen(groups: Iterable[Group], seen: set[str], counts: PromptCounts) -> Iterator[Group]:
    """The groups whose prompts are not in `seen`; they are from now on."""
    for group in groups:
        key = json.dumps(group.prompt)
        if key in seen:
            counts.duplicates += 1
        else:
            seen.add(key)
            yield group
