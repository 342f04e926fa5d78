"""`lit-align fit | validate | test | predict`: LightningCLI, with run folders and errors that are one sentence."""

from __future__ import annotations

from lightning.pytorch.cli import LightningArgumentParser, LightningCLI

import lit_align.data
import lit_align.losses
import lit_align.methods  # noqa: F401  short names in YAML are those of imported classes
from lit_align.cli_errors import ShortErrors


class Parser(ShortErrors, LightningArgumentParser):
    """LightningCLI's parser with short errors."""


class AlignmentCLI(LightningCLI):
    """Builds model, data and Trainer from configs and arguments, and runs the Trainer's method."""

    def __init__(self) -> None:
        super().__init__(
            parser_class=Parser,
            parser_kwargs={"prog": "lit-align"},
            seed_everything_default=42,
            auto_configure_optimizers=False,
        )

    def _parse_ckpt_path(self) -> None:
        """Leaves the config alone: Lightning would let the checkpoint's hyper-parameters override YAML and command line."""
