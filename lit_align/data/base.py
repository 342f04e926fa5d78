"""The base of the DataModules: from names of data sets to loaders, with a position that a checkpoint keeps."""

from __future__ import annotations

import copy
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from functools import partial
from itertools import islice
from typing import Any, ClassVar, Literal, cast

from lightning.pytorch import LightningDataModule
from lightning.pytorch.accelerators import CUDAAccelerator
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from transformers import PreTrainedTokenizerBase

from lit_align.data.arguments import check_names, check_sizes, check_streaming
from lit_align.data.budget import TokenBudget
from lit_align.data.collate import padded
from lit_align.data.counts import Counts, OnBadRow, with_progress
from lit_align.data.embedded import embedded_groups, is_embedded
from lit_align.data.encoded_cache import cache_file, one_rank_first, read_or_encode
from lit_align.data.encoding import Encoder, Lengths, TooLong
from lit_align.data.loader import GroupLoader, Positioned
from lit_align.data.overlap import overlap
from lit_align.data.rows import accepted, is_hub_name, load_from_hub, read_groups
from lit_align.data.shared_layout import shared
from lit_align.data.stored import refuse_unstreamable
from lit_align.data.streamed import EncodedGroups, StreamedGroups
from lit_align.data.token_groups import TokenGroups
from lit_align.errors import UserError
from lit_align.groups import Group, GroupBatch, TokenGroup
from lit_align.models import ModelConfig, load_tokenizer
from lit_align.runtime import gather_per_rank

BATCH_SIZE = 8


class GroupDataModule(LightningDataModule, ABC):
    """Rows of one kind, encoded with the tokenizer of the module that is trained.

    Args:
        train: Rows to train on: a `.jsonl`, `.json`, `.csv` or `.parquet` file, a folder of such files or one that `datasets`
            saved, a hub name, or an embedded task, `mini_instruct` or `mini_assistant`; a split as in `name:train`, a
            configuration of the hub as in `name@configuration:train`. Several, as a list, are read one after the other.
        val: Rows to validate on.
        batch_size: Prompts in a batch, on each device; 8 if neither this nor `tokens_per_batch` is given.
        val_batch_size: The same for validation. `batch_size` (or `tokens_per_batch`) if not given.
        tokens_per_batch: Fills each batch with prompts of about so many tokens on each device, padding included, in place of
            `batch_size`: steps then cost about the same, on every rank. A device's share may have somewhat more.
        seed: Of the order of the training rows, and of the rows that an embedded task draws.
        max_rows: Only so many of the training rows, from the first on. An embedded task draws so many (10,000 if not given).
        max_length: Tokens of a prompt and any one of its responses together.
        max_prompt_length: Tokens of a prompt. If not given, a prompt is cut only where it and its longest response exceed
            `max_length` together, and keeps at least half of that.
        too_long: What happens to longer ones: `cut` the beginning of prompts and the end of responses, `drop` the row, or
            `raise`.
        on_bad_row: `raise` stops at the first row that is malformed, `skip` leaves it out and reports how many there were.
        columns: Names for rows whose columns go by others: `{prompt: question, completion: answer}`.
        layout: `padded` gives each response a row of its own, with its prompt, for any model. `shared` has a prompt once, its
            responses behind it and other groups in the same row, for models with ordinary attention (`sdpa` or `eager`).
        tokens_per_row: Width of the shared layout's rows, or the longest group if that is more. The wider, the less padding,
            and the more attention is computed between groups only to be masked. `max_length` if not given.
        streaming: Whether rows stay on disk, and are encoded only when a batch needs them. Every row is then read once before
            training and 20 bytes of each are kept, where otherwise the token ids of all of them are.
        cache: Folder where encoded rows are kept, so that the next start with the same rows, tokenizer and settings reads them
            there. Without one, every start encodes anew. Embedded tasks are not kept.
        num_workers: Processes that put batches together.
        tokenizer: Folder or hub name, for a module that has no `tokenizer` of its own.
    """

    kind: ClassVar[Literal["sft", "preference", "ranking", "label"]]
    """Which rows of an embedded task these are."""

    def __init__(
        self,
        train: str | list[str],
        val: str | None = None,
        batch_size: int | None = None,
        val_batch_size: int | None = None,
        tokens_per_batch: int | None = None,
        seed: int = 0,
        max_rows: int | None = None,
        max_length: int = 1024,
        max_prompt_length: int | None = None,
        too_long: TooLong = "cut",
        on_bad_row: OnBadRow = "raise",
        columns: dict[str, str] | None = None,
        layout: Literal["padded", "shared"] = "padded",
        tokens_per_row: int | None = None,
        streaming: bool = False,
        cache: str | None = None,
        num_workers: int = 0,
        tokenizer: str | None = None,
    ) -> None:
        super().__init__()
        if val is None and val_batch_size is not None:
            raise UserError("val_batch_size has no effect without val: name rows to validate on, or leave it out.")
        if layout == "padded" and tokens_per_row is not None:
            raise UserError("tokens_per_row has no effect with layout: padded: set layout: shared, or leave it out.")
        if tokens_per_batch is not None and batch_size is not None:
            raise UserError("batch_size has no effect beside tokens_per_batch: give one of them.")
        check_sizes(
            batch_size=batch_size,
            val_batch_size=val_batch_size,
            tokens_per_batch=tokens_per_batch,
            max_rows=max_rows,
            tokens_per_row=tokens_per_row,
        )
        self.names = {"train": [train] if isinstance(train, str) else train, "val": [] if val is None else [val]}
        if not self.names["train"]:
            raise UserError("train names no rows.")
        check_names([*self.names["train"], *self.names["val"]], columns, streaming=streaming, cache=cache)
        if streaming:
            check_streaming(too_long, tokens_per_batch, cache)
        self.streaming = streaming
        self.cache = cache
        self.batch_size = batch_size or BATCH_SIZE
        self.val_batch_size = val_batch_size
        self.tokens_per_batch = tokens_per_batch
        self.seed = seed
        self.max_rows = max_rows
        self.lengths = Lengths(max_length, max_prompt_length, too_long)
        self.on_bad_row: OnBadRow = on_bad_row
        self.columns = columns
        self.layout: Callable[..., GroupBatch] = (
            padded if layout == "padded" else partial(shared, tokens_per_row=tokens_per_row or max_length)
        )
        self.num_workers = num_workers
        self.tokenizer = tokenizer
        self._encoded: dict[str, EncodedGroups] = {}
        self._encoder_tokenizer: PreTrainedTokenizerBase | None = None
        self._own_tokenizer: PreTrainedTokenizerBase | None = None
        self._rows: GroupLoader[Any] | None = None
        self._positioned: Positioned | None = None
        self._restored: dict[str, Any] = {}

    @abstractmethod
    def accept(self, group: Group) -> Group | None:
        """A row as this kind of data has it, or None for one that teaches nothing because its responses tie.

        Raises:
            RowError: It is no such row.
        """

    def prepare_data(self) -> None:
        """Downloads what is on the hub, once on each machine."""
        for name in self.names["train"] + self.names["val"]:
            if not is_embedded(name) and is_hub_name(name):
                load_from_hub(name)

    def setup(self, stage: str) -> None:
        """Reads and encodes the rows that `stage` needs.

        Raises:
            UserError: There are no such rows, a bad one among them, none left, or no tokenizer.
        """
        if stage == "validate" and not self.names["val"]:
            raise UserError("There is nothing to validate on: set data.val.")
        tokenizer = self._find_tokenizer()
        if tokenizer is not self._encoder_tokenizer:
            self._encoded, self._encoder_tokenizer = {}, tokenizer
        for split in {"fit": ("train", "val"), "validate": ("val",)}.get(stage, ()):
            if self.names[split] and split not in self._encoded:
                self._encoded[split] = self._encode(cast("Literal['train', 'val']", split), tokenizer)
                if split == "val" and "train" in self._encoded:
                    self._warn_of_overlap()
        if stage == "fit" and (self.trainer is None or self.trainer.global_step == 0):
            # Another Trainer starts from the beginning; a checkpoint, if there is one, is restored after this.
            self._rows, self._positioned, self._restored = None, None, {}

    def train_dataloader(self) -> Any:
        """The training batches, from where the last loader or the checkpoint stopped, wrapped as the method wants them."""
        rows = self.rows_loader()
        wrap = getattr(self.trainer and self.trainer.lightning_module, "train_loader", None)
        loader = rows if wrap is None else wrap(rows)
        # A wrapper that reads ahead, as a rollout does, has a position of its own.
        positioned = loader if hasattr(loader, "set_position") else rows
        if self._positioned is not None:
            positioned.set_position(self._positioned.position())
        self._rows, self._positioned = rows, positioned
        if self._restored:
            self._restore(rows, positioned)
        return loader

    def rows_loader(self) -> GroupLoader[Any]:
        """The training batches from the first on, not wrapped by the method, whose position is the caller's to keep.

        For methods that read a second DataModule beside their own, after its `setup("fit")`.
        """
        overfit = getattr(self.trainer, "overfit_batches", 0) > 0
        return self._make_loader("train", self.batch_size, shuffle=not overfit)

    def training_row(self, row: int) -> tuple[str, TokenGroup]:
        """Where a training row came from, as in "rows.jsonl, row 12" where that is known, and the row."""
        rows = self._encoded["train"]
        return (rows.source(row) if isinstance(rows, TokenGroups) else ""), rows[row]

    def val_dataloader(self) -> Any:
        """The validation batches, in order; none without `val`."""
        if not self.names["val"]:
            # Lightning has no quiet way of being told that there is nothing to validate on.
            warnings.filterwarnings("ignore", "Total length of `list` across ranks is zero")
            return []
        return self._make_loader("val", self.val_batch_size or self.batch_size, shuffle=False)

    def state_dict(self) -> dict[str, Any]:
        """Where training stands on every rank, and in which data. Every rank has to call."""
        if self._rows is None or self._positioned is None:
            return self._restored
        return {"data": self._rows.identity(), "positions": gather_per_rank(self._positioned.position())}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Goes on from there, now or as soon as there is a loader.

        Raises:
            UserError: The data, their order, or the size of a batch over all ranks changed; the message says what.
        """
        self._restored = state_dict
        if self._rows is not None and self._positioned is not None:
            self._restore(self._rows, self._positioned)

    def _restore(self, rows: GroupLoader[Any], positioned: Positioned) -> None:
        state, self._restored = self._restored, {}
        then, now = state["data"], rows.identity()
        changed = [f"{what} ({then[what]} then, {now[what]} now)" for what in now if then[what] != now[what]]
        if changed:
            raise UserError(
                f"The checkpoint was saved on other data, so its place in them means nothing. Changed: {', '.join(changed)}. "
                "Train on what it was trained on, or start a new run from its model."
            )
        positions = state["positions"]
        rank, world = (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)
        if len(positions) != world and positioned is not rows:
            raise UserError(
                f"The checkpoint holds what each of {len(positions)} ranks was doing, and now there are {world}."
            )
        # Lightning looks for a state in the loader itself and would warn that it cannot go on from the middle of an epoch.
        warnings.filterwarnings("ignore", "You're resuming from a checkpoint that ended before the epoch ended")
        positioned.set_position(positions[rank if len(positions) == world else 0])

    def _make_loader(self, split: str, batch_size: int, shuffle: bool) -> GroupLoader[Any]:
        if split not in self._encoded:
            raise UserError(f"The {split} rows are not read yet: call setup first, as the Trainer does.")
        ranks = (self.trainer and self.trainer.distributed_sampler_kwargs) or {"rank": 0, "num_replicas": 1}
        rows, tokens = self._encoded[split], self.tokens_per_batch
        budget = None
        if tokens is not None and isinstance(rows, TokenGroups) and (split == "train" or self.val_batch_size is None):
            budget = TokenBudget(rows, tokens, ranks["num_replicas"], padded=self.layout is padded)
        return GroupLoader(
            rows,
            batch_size,
            self._collate(split),
            shuffle=shuffle,
            seed=self.seed,
            rank=ranks["rank"],
            world=ranks["num_replicas"],
            num_workers=self.num_workers,
            pin_memory=self.trainer is not None and isinstance(self.trainer.accelerator, CUDAAccelerator),
            budget=budget,
        )

    def _collate(self, split: str) -> Callable[[list[TokenGroup]], Any]:
        """What makes the batches of a split."""
        assert self._encoder_tokenizer is not None
        tokenizer = self._encoder_tokenizer
        return partial(
            self.layout, pad_id=tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id
        )

    def _find_tokenizer(self) -> PreTrainedTokenizerBase:
        module = self.trainer and self.trainer.lightning_module
        of_module = getattr(module, "tokenizer", None)
        if self.tokenizer is None:
            if of_module is None:
                raise UserError(
                    f"{type(module).__name__} has no attribute `tokenizer`; give it one, or set data.tokenizer."
                    if module
                    else "Without a Trainer, data.tokenizer has to say which tokenizer encodes the rows."
                )
            return cast("PreTrainedTokenizerBase", of_module)
        if of_module is not None:
            raise UserError(
                f"{type(module).__name__} brings its own tokenizer, so data.tokenizer ({self.tokenizer!r}) would have no "
                "effect: leave it out."
            )
        if self._own_tokenizer is None:
            self._own_tokenizer = load_tokenizer(ModelConfig(path=self.tokenizer, init="random"))
        return self._own_tokenizer

    def _encode(self, split: Literal["train", "val"], tokenizer: PreTrainedTokenizerBase) -> EncodedGroups:
        counts = Counts(self.on_bad_row)
        encoded = self._encode_counted(split, tokenizer, counts)
        names = ", ".join(self.names[split])
        if not len(encoded):
            raise UserError(f"data.{split}: no row of {names} can be used: {counts}")
        rank_zero_info(f"data.{split}: {names}: {counts}")
        if isinstance(encoded, StreamedGroups):
            rank_zero_info(f"data.{split}: streamed; a sample of them: {encoded.sample}")
        return encoded

    def _encode_counted(
        self, split: Literal["train", "val"], tokenizer: PreTrainedTokenizerBase, counts: Counts
    ) -> EncodedGroups:
        """The rows of a split, from the cache where they are there; what became of them is counted."""
        if self.streaming:
            return self._stream(split, counts, tokenizer)
        encoder = Encoder(tokenizer, self.lengths, counts)

        def encode() -> TokenGroups:
            groups = accepted(self._read(split, counts), self.accept, counts)
            return TokenGroups(with_progress(encoder.encode(groups), split, "encoded"))

        if self.cache is None or any(map(is_embedded, self.names[split])):
            return encode()
        writes = not getattr(self.trainer, "fast_dev_run", False)

        def encode_once() -> TokenGroups:
            file = cache_file(self, self.names[split], self.max_rows if split == "train" else None, tokenizer)
            return read_or_encode(file, counts, encode, writes=writes)

        return one_rank_first(self.trainer, encode_once)

    def _warn_of_overlap(self) -> None:
        if any(map(is_embedded, (*self.names["train"], *self.names["val"]))):
            return  # whose prompts are few, and repeat
        rows = overlap(self._encoded["train"], self._encoded["val"])
        if rows:
            assert self._encoder_tokenizer is not None
            prompt = self._encoder_tokenizer.decode(self._encoded["val"][rows[0]].prompt)
            rank_zero_warn(
                f"{len(rows):,} of {len(self._encoded['val']):,} rows of data.val have a prompt of data.train, so validation "
                "also measures what was learnt by heart. Take them out of one of the two; the first is "
                f"{prompt[:200]!r}."
            )

    def _stream(
        self, split: Literal["train", "val"], counts: Counts, tokenizer: PreTrainedTokenizerBase
    ) -> StreamedGroups:
        refuse_unstreamable(self.names[split])
        # Without its Trainer and rows, so that it can be sent to worker processes.
        alone = copy.copy(self)
        alone.trainer, alone._encoded, alone._rows, alone._positioned = None, {}, None, None
        return StreamedGroups(
            with_progress(accepted(self._read(split, counts), self.accept, counts), split, "indexed"),
            counts,
            accept=alone.accept,
            columns=self.columns,
            tokenizer=tokenizer,
            lengths=self.lengths,
        )

    def _read(self, split: Literal["train", "val"], counts: Counts) -> Iterator[Group]:
        limit = self.max_rows if split == "train" else None
        for name in self.names[split]:
            if is_embedded(name):
                read = iter(embedded_groups(name, self.kind, limit, self.seed, split))
            else:
                read = read_groups(name, counts, self.columns)
            for group in islice(read, limit):
                yield group
                limit = None if limit is None else limit - 1
