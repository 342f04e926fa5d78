"""Finished and unfinished runs, read back from their folders."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from lit_align.errors import UserError
from lit_align.nearest import did_you_mean
from lit_align.runtime.run_folder import RunFolder


@dataclass(frozen=True)
class Run:
    """One run of a group.

    Args:
        folder: Where it lies.
        config: Its config.yaml.
        metrics: The last value of everything it logged.
    """

    folder: RunFolder
    config: dict[str, Any]
    metrics: dict[str, float]

    @property
    def name(self) -> str:
        """The name of its folder."""
        return self.folder.path.name

    @property
    def method(self) -> str:
        """The name of its LightningModule's class."""
        return str(self.config["model"]["class_path"]).rpartition(".")[2]

    @property
    def trains_on_mini_instruct(self) -> bool:
        """True where its training rows are the embedded task's."""
        train = self._arguments("data").get("train")
        return train in ("mini_instruct", ["mini_instruct"])

    @property
    def trains_on_mini_assistant(self) -> bool:
        """True where its training rows, or some of them, are the second embedded task's."""
        train = self._arguments("data").get("train")
        return any(
            str(name).partition(":")[0] == "mini_assistant" for name in (train if isinstance(train, list) else [train])
        )

    @property
    def starts_from(self) -> str | None:
        """The path of the pretrained model that it was told to train."""
        policy = self._arguments("model").get("policy")
        return policy.get("path") if isinstance(policy, dict) and policy.get("init") != "random" else None

    @property
    def is_reward_model(self) -> bool:
        """True where the exported model scores text and does not write it."""
        return any("SequenceClassification" in name for name in self.architectures)

    @property
    def architectures(self) -> list[str]:
        """The exported model's classes; empty where there is none yet."""
        file = self.folder.model / "config.json"
        return list(json.loads(file.read_text())["architectures"]) if file.is_file() else []

    def _arguments(self, key: str) -> dict[str, Any]:
        return dict((self.config.get(key) or {}).get("init_args") or {})


def read_group(group: Path) -> list[Run]:
    """The runs of a group folder in the order in which they were started.

    Raises:
        UserError: The folder is missing, is itself a run, or holds none; a config.yaml cannot be read.
    """
    if not group.is_dir():
        names = [str(folder) for folder in sorted(group.parent.glob("*")) if folder.is_dir()]
        raise UserError(f"There is no folder {group}{did_you_mean(str(group), names)}")
    if RunFolder(group).config.is_file():
        raise UserError(f"{group} is one run; `compare` takes the folder that holds several, here {group.parent}.")
    configs = sorted(group.glob("*/config.yaml"), key=lambda file: (file.stat().st_mtime, file.parent.name))
    if not configs:
        raise UserError(f"{group} holds no run. `lit-align fit --run {group}/<name>` makes one.")
    return [read_run(RunFolder(file.parent)) for file in configs]


def read_run(folder: RunFolder) -> Run:
    """Reads one run.

    Raises:
        UserError: Its config.yaml is not that of a run.
    """
    try:
        config = yaml.safe_load(folder.config.read_text(encoding="utf-8"))
        if not config["model"]["class_path"]:
            raise KeyError("class_path")
    except (yaml.YAMLError, KeyError, TypeError, UnicodeDecodeError) as error:
        raise UserError(f"{folder.config} is not the config of a run; remove {folder.path} or mend it.") from error
    return Run(folder, config, last_metrics(folder.metrics))


def last_metrics(file: Path) -> dict[str, float]:
    """The last number in each column of a metrics.csv; half a line at the end does not count."""
    found: dict[str, float] = {}
    for row in metric_rows(file):
        found |= row
    return {name: value for name, value in found.items() if name not in ("step", "epoch")}


def metric_rows(file: Path) -> Iterator[dict[str, float]]:
    """The numbers in each whole line of a metrics.csv by column, empty cells left out; nothing where it is missing."""
    text = file.read_text(encoding="utf-8", errors="replace") if file.is_file() else ""
    for row in csv.DictReader(text.rpartition("\n")[0].splitlines()):
        numbers = {}
        for name, cell in row.items():
            try:
                numbers[name] = float(cell)
            except (TypeError, ValueError):
                continue
        yield numbers
