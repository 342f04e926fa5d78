"""Lightning's CSV and Weights & Biases loggers, made for one folder a run: they go on where a continued run stopped."""

from __future__ import annotations

import csv
import netrc
import os
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

from lightning.fabric.loggers.logger import rank_zero_experiment
from lightning.pytorch.loggers import CSVLogger, WandbLogger
from torch import Tensor


class RunCSVLogger(CSVLogger):
    """Writes `metrics.csv` straight into the run folder, and adds to the rows that a continued run finds there.

    Lightning's own starts with deleting that file. Hyper-parameters are not written: `config.yaml` beside it holds them.

    Args:
        save_dir: The run folder.
        prefix: What every column starts with.
        flush_logs_every_n_steps: After how many steps rows are written out; 1 loses none when a run is killed.
    """

    def __init__(self, save_dir: str | Path, prefix: str = "", flush_logs_every_n_steps: int = 1) -> None:
        super().__init__(
            save_dir, name="", version="", prefix=prefix, flush_logs_every_n_steps=flush_logs_every_n_steps
        )
        self._experiment: Any = None

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        """The `MetricsFile`; on other ranks a dummy."""
        if self._experiment is None:
            self._experiment = MetricsFile(Path(self.log_dir))
        return self._experiment

    def drop_from(self, step: int) -> None:
        """Removes the rows of `step` and later: what a stopped run did after the checkpoint that it continues from."""
        self.experiment.drop_from(step)


class MetricsFile:
    """Rows of numbers in `metrics.csv`, one column a name, empty where a row lacks it.

    Args:
        log_dir: The folder of the file; made if need be.
    """

    def __init__(self, log_dir: Path) -> None:
        log_dir.mkdir(parents=True, exist_ok=True)
        self.file = log_dir / "metrics.csv"
        self.metrics: list[dict[str, Any]] = []
        self._is_behind = False
        self.columns: list[str] = []
        if self.file.exists():
            whole_lines, end, _ = self.file.read_bytes().rpartition(b"\n")
            self.file.write_bytes(whole_lines + end)  # a run that was killed may have left half a line
            with self.file.open(newline="") as lines:
                self.columns = list(csv.DictReader(lines).fieldnames or [])

    def log_metrics(self, metrics: dict[str, Any], step: int | None = None) -> None:
        """Keeps a row until `save`."""
        row = {name: value.item() if isinstance(value, Tensor) else value for name, value in metrics.items()}
        self.metrics.append(row | {"step": len(self.metrics) if step is None else step})

    def log_hparams(self, params: dict[str, Any]) -> None:
        """Does nothing; see `RunCSVLogger`."""

    def save(self) -> None:
        """Appends the kept rows; where they bring new columns, the file is written anew.

        Where the disk is full they are kept until it is not.
        """
        if not self.metrics:
            return
        try:
            self._write_columns()
            self._append()
            self._is_behind = False
        except OSError as error:
            if not self._is_behind:
                reason = error.strerror or error
                warnings.warn(f"{self.file} cannot be written: {reason}. Its rows wait until it can be.", stacklevel=2)
            self._is_behind = True

    def _write_columns(self) -> None:
        columns = sorted({*self.columns, *(name for row in self.metrics for name in row)})
        if columns != self.columns:
            self._replace(self._rows(), columns)
            self.columns = columns

    def _append(self) -> None:
        size = self.file.stat().st_size
        try:
            with self.file.open("a", newline="") as lines:
                csv.DictWriter(lines, self.columns).writerows(self.metrics)
        except OSError:
            os.truncate(self.file, size)
            raise
        self.metrics = []

    def drop_from(self, step: int) -> None:
        """Removes the rows whose step is `step` or later."""
        rows = self._rows()
        kept = [row for row in rows if int(row["step"]) < step]
        if len(kept) < len(rows):
            self._replace(kept, self.columns)

    def _rows(self) -> list[dict[str, Any]]:
        if not self.file.exists():
            return []
        with self.file.open(newline="") as lines:
            return [row for row in csv.DictReader(lines) if (row.get("step") or "").isdigit()]

    def _replace(self, rows: list[dict[str, Any]], columns: list[str]) -> None:
        beside = self.file.with_suffix(".csv.tmp")
        with beside.open("w", newline="") as lines:
            writer = csv.DictWriter(lines, columns, extrasaction="ignore")
            writer.writeheader()
            writer.writerows(rows)
        beside.replace(self.file)


class RunWandbLogger(WandbLogger):
    """Weights & Biases for one run folder: its files lie in `<run>/wandb/`, and a continued run goes on in the same curve.

    Without a key (WANDB_API_KEY, or `wandb login`) it stays offline and quiet, and `wandb sync` uploads the run later.
    When W&B cannot be reached the run goes on offline; when it fails altogether, without it.

    Args:
        save_dir: The run folder.
        kwargs: See Lightning's `WandbLogger`; what is left open is filled in from the run folder.
    """

    def __init__(self, save_dir: str | Path = ".", **kwargs: Any) -> None:
        run = Path(save_dir)
        kwargs["offline"] = bool(kwargs.get("offline")) or not wandb_key_is_set()
        if kwargs["offline"]:
            os.environ.setdefault("WANDB_SILENT", "true")
            kwargs.setdefault("settings", {"console": "off"})
        kwargs["name"] = kwargs.get("name") or run.name
        kwargs.setdefault("group", run.parent.name)
        if not (kwargs.get("version") or kwargs.get("id")):
            kwargs["version"] = last_wandb_id(run)
        super().__init__(save_dir=str(run), **kwargs)
        self._wandb_init.pop("anonymous", None)  # a setting without effect, for which every run would print a warning

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        """The W&B run; one that is offline, or records nothing, where none could be started, and on other ranks."""
        import wandb  # half a second that a run without this logger saves

        try:
            return super().experiment
        except (wandb.Error, OSError) as error:
            if self._wandb_init.get("mode") != "offline" and not self._offline:
                warnings.warn(
                    f"Weights & Biases cannot be reached, so this run goes on offline; `wandb sync` uploads it later: {error}",
                    stacklevel=2,
                )
                self._wandb_init["mode"] = "offline"
                return self.experiment
            warnings.warn(f"This run goes on without Weights & Biases: {error}", stacklevel=2)
            self._experiment = wandb.init(mode="disabled")
            return self._experiment

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Logs a row; what W&B then fails with ends the logging and not the run."""
        import wandb

        try:
            super().log_metrics(metrics, step)
        except (wandb.Error, OSError) as error:
            warnings.warn(f"This run goes on without Weights & Biases: {error}", stacklevel=2)
            self._experiment = wandb.init(mode="disabled")


def wandb_key_is_set() -> bool:
    """True where W&B can log in by itself: by WANDB_API_KEY, or by what `wandb login` wrote to the netrc file."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    host = urlparse(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")).hostname or ""
    file = Path(os.environ.get("NETRC", Path.home() / ".netrc"))
    try:
        return host in netrc.netrc(str(file)).hosts
    except (OSError, netrc.NetrcParseError):
        return False


def last_wandb_id(run: Path) -> str | None:
    """The id of the newest W&B run in a run folder, so that a continued run goes on in it; None where there is none."""
    folders = sorted((run / "wandb").glob("*run-*-*"), key=lambda folder: folder.stat().st_mtime)
    return folders[-1].name.rpartition("-")[2] if folders else None
