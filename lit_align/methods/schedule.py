"""Learning rates over a run."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Literal

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from lit_align.errors import UserError


@dataclass(frozen=True)
class Schedule:
    """Linear warm-up, then a decay to the end of the run, one value an optimiser step.

    Args:
        warmup: Share of the run's optimiser steps over which the rate rises from 0 to the optimiser's own.
        decay: What follows: `constant`, `linear` or `cosine`.
        final: Rate at the end of the run as a share of the optimiser's own. Has no meaning for `constant`.
    """

    warmup: float = 0.0
    decay: Literal["constant", "linear", "cosine"] = "constant"
    final: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.warmup <= 1:
            raise UserError(f"lr_scheduler.warmup is a share of the run's steps in [0, 1], got {self.warmup}.")
        if not 0 <= self.final <= 1:
            raise UserError(f"lr_scheduler.final is a share of the learning rate in [0, 1], got {self.final}.")
        if self.decay == "constant" and self.final:
            raise UserError("lr_scheduler.final has no effect with decay: constant; set decay: linear or cosine.")

    def __call__(self, optimizer: Optimizer, total_steps: int) -> LambdaLR:
        """The scheduler of a run of `total_steps` optimiser steps."""
        return LambdaLR(optimizer, lambda step: self.factor(step, total_steps))

    def restarting(self, optimizer: Optimizer, stages: Sequence[int]) -> LambdaLR:
        """The scheduler of a run that begins anew with each stage.

        Args:
            optimizer: The optimiser.
            stages: Optimiser steps of each stage.
        """
        begins = [0, *accumulate(stages)]

        def factor(step: int) -> float:
            stage = min(bisect_right(begins, step), len(stages)) - 1
            return self.factor(step - begins[stage], stages[stage])

        return LambdaLR(optimizer, factor)

    def factor(self, step: int, total_steps: int) -> float:
        """The rate at a step, counted from 0, as a share of the optimiser's own."""
        warmup_steps = round(self.warmup * total_steps)
        if step < warmup_steps:
            return (step + 1) / (warmup_steps + 1)
        if self.decay == "constant":
            return 1.0
        progress = min(1.0, (step - warmup_steps) / max(1, total_steps - warmup_steps))
        shape = 1 - progress if self.decay == "linear" else (1 + math.cos(math.pi * progress)) / 2
        return self.final + (1 - self.final) * shape
