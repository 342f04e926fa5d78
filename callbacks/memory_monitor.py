"""Memory and speed of the training steps."""

from __future__ import annotations

import sys
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer

from callbacks.base import Evaluation, ask, evaluation_seconds
from callbacks.matrix_rate import matrix_rate, now
from callbacks.model_flops import NONE, Tokens, batch_tokens, training_flops
from lit_align.runtime import gather_per_rank

GIB = 2**30
DTYPES = {"16": torch.float16, "bf16": torch.bfloat16, "32": torch.float32, "64": torch.float64}


class MemoryMonitor(Evaluation):
    """How much memory the training steps take, how fast they are, and what share of the device that uses.

    It times the batches themselves, from Lightning's `on_train_batch_start` to `on_train_batch_end`: no data loading, rollout,
    validation or callback. The first batch of a process is left out, because whatever is built lazily is built there.

    Metrics, of the steps since the measurement before: `eval/memory/peak`, GiB, of the rank with most: on CUDA what tensors
    took at the highest moment of any of these steps, elsewhere the process's highest since it began; `/tokens_per_second`,
    tokens that are no padding, prompts included, of all ranks together; `/mfu`, model FLOPs utilisation (see
    `model_flops.training_flops`) of the rate at which the device multiplies matrices in the run's precision, mean over ranks;
    `/matrix_rate`, that rate, TFLOP/s, mean over ranks, measured once. The last
    three are there where batches say how many tokens they hold.

    Args:
        every_n_steps: Optimiser steps between two measurements.
        name: Stands for `memory` in the metrics' names.
    """

    def __init__(self, every_n_steps: int = 50, name: str = "memory") -> None:
        super().__init__(name, every_n_steps, at_start=False, seed=0)
        self._began: tuple[float, float] | None = None
        self._is_warm = False
        self._restart()

    def _restart(self) -> None:
        self._seconds, self._peak, self._tokens = 0.0, 0.0, NONE

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Whether there is a policy whose arithmetic can be counted."""
        ask(pl_module, "policy", self)
        self._began, self._is_warm = None, False
        self._restart()

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Starts the clock."""
        if pl_module.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(pl_module.device)
        self._began = now(pl_module.device), evaluation_seconds(trainer)

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *batch: Any) -> None:
        """Stops it, without what callbacks that come before this one have measured."""
        assert self._began is not None
        seconds = now(pl_module.device) - self._began[0] - (evaluation_seconds(trainer) - self._began[1])
        self._peak = max(self._peak, peak_memory(pl_module.device))
        if self._is_warm:
            self._seconds += seconds
            self._tokens += batch_tokens(batch[1])
        self._is_warm = True
        super().on_train_batch_end(trainer, pl_module, *batch)

    def evaluate(self, trainer: Trainer, module: LightningModule) -> dict[str, float]:
        """Brings the ranks' numbers together."""
        rate = self._rate(trainer, module)
        speeds = self._speeds(module, rate, self._tokens) if self._tokens.trunk and self._seconds > 0 else None
        ranks = gather_per_rank((self._peak, rate, speeds))
        metrics = {"peak": max(peak for peak, _, _ in ranks) / GIB}
        measured = [speeds for _, _, speeds in ranks if speeds is not None]
        if measured:
            metrics["tokens_per_second"] = sum(tokens for tokens, _ in measured)
            metrics["mfu"] = sum(share for _, share in measured) / len(measured)
            metrics["matrix_rate"] = sum(of_rank for _, of_rank, _ in ranks) / len(ranks) / 1e12
        self._restart()
        return {f"eval/{self.name}/{name}": value for name, value in metrics.items()}

    def _speeds(self, module: LightningModule, rate: float, tokens: Tokens) -> tuple[float, float]:
        """Tokens a second, and the share of the matrix rate."""
        flops = training_flops(ask(module, "policy", self), tokens)
        return tokens.trunk / self._seconds, flops / self._seconds / rate

    @staticmethod
    def _rate(trainer: Trainer, module: LightningModule) -> float:
        dtype = DTYPES.get(str(trainer.precision).partition("-")[0], torch.float32)
        return matrix_rate(module.device, dtype)


def peak_memory(device: torch.device) -> float:
    """Bytes: on CUDA since the peak was last reset, elsewhere of the process since it began."""
    if device.type == "cuda":
        return float(torch.cuda.max_memory_allocated(device))
    import resource  # not on Windows

    return float(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss) * (1 if sys.platform == "darwin" else 1024)
