"""Samples for people to read: `<run>/samples.jsonl`, and a table in wandb."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.loggers import WandbLogger
from lightning.pytorch.loggers.logger import DummyLogger

FILE = "samples.jsonl"


def log_samples(trainer: Trainer, rows: list[dict[str, Any]], source: str | None = None) -> None:
    """Appends rows to the run's samples, each with the step it was sampled at; rank 0 only.

    Rows of the same source of this step and later ones, which a run that goes on from an earlier checkpoint left there, are
    replaced.

    Args:
        trainer: Training.
        rows: At least one, all with the same columns.
        source: Who sampled, where it is not the method itself; a column of its own.
    """
    if not trainer.is_global_zero or not trainer.loggers or isinstance(trainer.logger, DummyLogger):
        return
    path = Path(trainer.default_root_dir) / FILE
    label = {} if source is None else {"source": source}
    kept = [
        line
        for line in (path.read_text(encoding="utf-8").split("\n") if path.exists() else [])
        if line and ((earlier := json.loads(line))["step"] < trainer.global_step or earlier.get("source") != source)
    ]
    new = [json.dumps({"step": trainer.global_step, **label, **row}, ensure_ascii=False) for row in rows]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join([*kept, *new]) + "\n", encoding="utf-8")
    for logger in trainer.loggers:
        if isinstance(logger, WandbLogger):
            columns = list(rows[0])
            logger.log_table("samples", columns=columns, data=[[_cell(row[name]) for name in columns] for row in rows])


def _cell(value: Any) -> Any:
    """A value as a table of wandb shows it: chat turns one below the other."""
    if not isinstance(value, list):
        return value
    return "\n".join(f"{turn['role']}: {turn['content']}" for turn in value)
