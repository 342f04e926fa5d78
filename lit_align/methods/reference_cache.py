"""Reference log-probs on disk: worked out once for every row, so that no reference model has to stay in memory."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.utilities import rank_zero_info
from rich.progress import track
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from lit_align.errors import UserError
from lit_align.groups import GroupBatch
from lit_align.models import Reference, response_logps
from lit_align.models.fingerprint import fingerprint

if TYPE_CHECKING:
    from lit_align.methods.base import AlignmentModule


class ReferenceTable:
    """What the reference says of every response of a data set.

    Args:
        offsets: Number of responses before each row, `(rows + 1,)`.
        sums: Log-probability of each response, nats, `(responses,)`, for each part of a batch that has its own.
    """

    def __init__(self, offsets: Tensor, sums: dict[str, Tensor]) -> None:
        self.offsets = offsets
        self.sums = sums

    def look_up(self, batch: GroupBatch, part: str) -> Tensor:
        """Of the responses of a batch, `(N,)`."""
        return self.sums[part][self._places(batch)]

    def note(self, batch: GroupBatch, part: str, sums: Tensor, *, is_filler: bool) -> None:
        """Remembers `(N,)` of a batch; nothing of a filler, whose row stands in another batch."""
        if part not in self.sums:
            self.sums[part] = sums.new_zeros(int(self.offsets[-1]))
        if not is_filler:
            self.sums[part][self._places(batch)] = sums

    def _places(self, batch: GroupBatch) -> Tensor:
        number = torch.arange(batch.n_responses, device=batch.group_index.device)
        first = torch.searchsorted(batch.group_index, batch.group_index)
        return self.offsets[batch.rows][batch.group_index] + number - first


class ReferenceCache:
    """The tables of a run, made or read before they are needed.

    Args:
        folder: Where the files are.
        reference: The model that the numbers are of.
    """

    def __init__(self, folder: Path, reference: Reference) -> None:
        self.folder = folder
        self.reference = reference
        self._tables: dict[str, ReferenceTable] = {}

    def sums(self, trainer: Trainer, batch: GroupBatch, part: str) -> Tensor:
        """Log-probability of each response of a batch of the Trainer's present stage, nats, `(N,)`."""
        return self._tables["train" if trainer.training else "val"].look_up(batch, part)

    def prepare(self, module: AlignmentModule, split: str) -> None:
        """Reads the numbers of a split, or makes and writes them. Every rank has to call.

        Raises:
            UserError: The Trainer was given no DataModule whose rows can be told apart.
        """
        loader = _loader(module.trainer, split)
        if loader is None:
            return
        file = self.folder / f"{self._key(module, loader)}.safetensors"
        is_first, strategy = module.global_rank == 0, module.trainer.strategy
        known = strategy.broadcast(_read(file) if is_first else None)
        offsets = torch.from_numpy(loader.groups.response_offsets).to(module.device)
        if known is not None:
            rank_zero_info(f"Reference log-probs of data.{split}: read from {file}")
            self._tables[split] = ReferenceTable(
                offsets, {name: sums.to(module.device) for name, sums in known.items()}
            )
            return
        table = self._tables[split] = ReferenceTable(offsets, {})
        self._fill(table, module, loader, split)
        for part, sums in table.sums.items():
            # Each row was scored by one rank and is 0 on the others.
            table.sums[part] = strategy.reduce(sums, reduce_op="sum")
        if is_first and not _dry_run(module.trainer):
            _write(file, table.sums)
            rank_zero_info(f"Reference log-probs of data.{split}: written to {file}")

    @torch.no_grad()
    def _fill(self, table: ReferenceTable, module: AlignmentModule, loader: Any, split: str) -> None:
        """Scores this rank's share of the batches."""
        trainer = module.trainer
        model = self._model(module)
        was_training = model.training
        model.eval()
        batches: Iterable[Any] = track(
            loader,
            f"Reference log-probs, {split}",
            total=len(loader),
            transient=True,
            disable=module.global_rank > 0 or trainer.progress_bar_callback is None,
        )
        with trainer.precision_plugin.forward_context():
            for batch in islice(batches, _dry_run(trainer) or None):
                for part, of_part in module.reference_batches(batch.to(module.device)).items():
                    sums = of_part.weighted_sums(response_logps(model, of_part))
                    table.note(of_part, part, sums, is_filler=batch.is_filler)
        model.train(was_training)
        self.reference.forget()

    def _model(self, module: AlignmentModule) -> Any:
        """The policy itself as long as it is the reference, so that there is never more than one in memory."""
        policy: Any = module.policy
        if not self.reference.in_memory and fingerprint(policy) == self.reference.fingerprint:
            return policy
        return module.trainer.precision_plugin.convert_module(self.reference.model).to(module.device)

    def _key(self, module: AlignmentModule, loader: Any) -> str:
        config, rows = module.policy_config, loader.groups.fingerprint
        facts = (
            *(self.reference.fingerprint, rows.rows, rows.tokens, type(module).__name__),
            *(module.trainer.precision, config.dtype, config.attn_implementation),
        )
        return hashlib.sha256(repr(facts).encode()).hexdigest()[:24]


def _loader(trainer: Trainer, split: str) -> Any:
    """The batches of a split in the order in which training begins; None where there are none."""
    data: Any = getattr(trainer, "datamodule", None)
    if not hasattr(data, "rows_loader"):
        raise UserError(
            "CachedReference keeps its numbers by row, so the rows have to come from a DataModule of lit_align.data; or use "
            "FrozenReference."
        )
    if split == "train":
        return data.rows_loader()
    return (data.val_dataloader() if trainer.limit_val_batches else None) or None


def _dry_run(trainer: Trainer) -> int:
    """How many batches a dry run has; 0 where the run is none."""
    return int(getattr(trainer, "fast_dev_run", 0))


def _read(file: Path) -> dict[str, Tensor] | None:
    try:
        return dict(load_file(file)) if file.exists() else None
    except SafetensorError:
        return None


def _write(file: Path, sums: dict[str, Tensor]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_suffix(f".{os.getpid()}.tmp")
    save_file({name: values.cpu() for name, values in sums.items()}, partial)
    partial.replace(file)
