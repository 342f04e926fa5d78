"""What bfloat16 costs a run that whoever set it may not expect."""

from __future__ import annotations

import time

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.utilities import rank_zero_warn

WIDTH = 512
"""Of the matrices that are multiplied: a product takes milliseconds where bf16 is emulated, and microseconds on a GPU."""

SLOW = 1.2
"""Times as long as in float32; what is slower is no accident of the clock."""


def warn_of_slow_bf16(trainer: Trainer) -> None:
    """Warns where the Trainer computes in bfloat16 and the device would be quicker in float32.

    It is measured, in some hundredths of a second, because no list of devices is complete: bf16 is emulated on many CPUs and on
    GPUs before NVIDIA's Ampere.
    """
    precision, device = trainer.precision, trainer.strategy.root_device
    if precision not in ("bf16-mixed", "bf16-true"):
        return
    times = bf16_over_float32(device)
    if times > SLOW:
        saved = " It saves memory all the same." if precision == "bf16-true" else ""
        rank_zero_warn(
            f"Products of matrices take {times:.1f} times as long in bfloat16 as in float32 on this device ({device.type}), so "
            f"trainer.precision: {precision} slows the run down: set it to 32-true.{saved}"
        )


def warn_of_lost_updates(trainer: Trainer) -> None:
    """Warns where weights in bfloat16 are trained by an optimiser that forgets what rounding takes from its updates.

    Those of `torch.optim` do. What it costs is measured in docs/performance.md.
    """
    for optimizer in trainer.optimizers:
        trained = (weight for group in optimizer.param_groups for weight in group["params"])
        if type(optimizer).__module__.startswith("torch.optim") and any(w.dtype == torch.bfloat16 for w in trained):
            rank_zero_warn(
                f"The trained weights are in bfloat16, and {type(optimizer).__name__} loses every update that is smaller than "
                "a 256th part of a weight: at the learning rates of alignment that is most of them. Keep the weights in "
                "float32 (trainer.precision: bf16-mixed, policy.dtype: float32), or take an optimizer with Kahan summation, "
                "such as optimi.AdamW of the package torch-optimi with kahan_sum: true."
            )


def bf16_over_float32(device: torch.device) -> float:
    """Time of a product of matrices in bfloat16 over that in float32: of each the shortest, which others disturb least."""
    bf16, float32 = (
        min(_seconds(torch.ones(WIDTH, WIDTH, dtype=dtype, device=device)) for _ in range(8))
        for dtype in (torch.bfloat16, torch.float32)
    )
    return bf16 / float32


def _seconds(matrix: torch.Tensor) -> float:
    start = time.perf_counter()
    _ = matrix @ matrix
    if matrix.device.type != "cpu":
        torch.accelerator.synchronize()
    return time.perf_counter() - start
