"""Tables for people: a CSV file in the run folder, and a table in wandb."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence

from lightning.pytorch import Trainer
from lightning.pytorch.loggers import WandbLogger

from callbacks.base import output_folder


def log_table(trainer: Trainer, name: str, rows: Sequence[Mapping[str, float | str]]) -> None:
    """Adds rows to `<run>/eval/<name>.csv`, see `write_csv`, and shows them in wandb; on rank 0 only."""
    write_csv(trainer, name, rows)
    for logger in trainer.loggers:
        if isinstance(logger, WandbLogger):
            columns = list(rows[0])
            data = [[row[column] for column in columns] for row in rows]
            logger.log_table(f"eval/{name}", columns=columns, data=data)


def write_csv(trainer: Trainer, name: str, rows: Sequence[Mapping[str, float | str]]) -> None:
    """Adds rows to `<run>/eval/<name>.csv`, each with the step they belong to; on rank 0 only.

    Rows of this step and later ones, which a run that goes on from an earlier checkpoint left there, are replaced.

    Args:
        trainer: Training.
        name: Of the table.
        rows: At least one, all with the same columns.
    """
    folder = output_folder(trainer)
    if folder is None:
        return
    file, columns = folder / f"{name}.csv", list(rows[0])
    kept: list[Mapping[str, float | str]] = []
    if file.exists():
        with file.open(newline="") as lines:
            kept = [row for row in csv.DictReader(lines) if int(row["step"]) < trainer.global_step]
    with file.open("w", newline="") as lines:
        writer = csv.DictWriter(lines, ["step", *columns], extrasaction="ignore")
        writer.writeheader()
        writer.writerows([*kept, *({"step": trainer.global_step, **row} for row in rows)])
