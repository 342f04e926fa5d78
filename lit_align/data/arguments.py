"""Which arguments of a DataModule go together: one that would have no effect is refused."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from lit_align.data.embedded import is_embedded
from lit_align.data.encoding import TooLong
from lit_align.errors import UserError


def check_sizes(**sizes: int | None) -> None:
    """Refuses sizes below 1; None is none.

    Raises:
        UserError: One is.
    """
    for name, size in sizes.items():
        if size is not None and size < 1:
            raise UserError(f"{name} must be at least 1, got {size}.")


def check_names(names: Sequence[str], columns: Mapping[str, str] | None, *, streaming: bool, cache: str | None) -> None:
    """Refuses what has no effect on embedded tasks.

    Args:
        names: Of all data sets.
        columns: As in `GroupDataModule`.
        streaming: The same.
        cache: The same.

    Raises:
        UserError: One of the others is set, and there is nothing that it has an effect on.
    """
    embedded = [name for name in names if is_embedded(name)]
    if streaming and embedded:
        raise UserError(
            f"{embedded[0]} is drawn in memory, so streaming has no effect on it: leave out one of the two."
        )
    if len(embedded) < len(names):
        return
    if columns is not None:
        raise UserError(f"columns has no effect on {embedded[0]}: leave it out.")
    if cache is not None:
        raise UserError(f"cache has no effect, because {embedded[0]} is drawn anew: leave it out.")


def check_streaming(too_long: TooLong, tokens_per_batch: int | None, cache: str | None) -> None:
    """Refuses what cannot be had of rows that stay on disk.

    Raises:
        UserError: One of the arguments, which are those of `GroupDataModule`, asks for it.
    """
    if tokens_per_batch is not None:
        raise UserError(
            "How long streamed rows are is not known when batches are made: give batch_size in place of tokens_per_batch, or "
            "leave streaming out."
        )
    if cache is not None:
        raise UserError("cache has no effect, because streamed rows are encoded when a batch needs them: leave it out.")
    if too_long == "drop":
        raise UserError(
            "How long a streamed row is shows only when a batch needs it, too late to drop it: set too_long to cut or "
            "raise, or leave streaming out."
        )
