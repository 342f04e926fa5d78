"""How fast a device multiplies matrices: what a run's speed is measured against."""

from __future__ import annotations

import time
from functools import cache

import torch

SECONDS = 0.3
"""How long a rate is measured for."""

FLOPS = {"cpu": 2**28, "cuda": 2**40}
"""About what one product takes: enough to fill the device, little enough to be repeated."""


@cache
def matrix_rate(device: torch.device, dtype: torch.dtype) -> float:
    """FLOP a second of the fastest of several products of two square matrices; measured once a process.

    A product of n x n matrices is 2 n^3 FLOP. The numbers are random, because a device may multiply zeros faster, and come
    from a generator of their own.

    Args:
        device: Where.
        dtype: What is multiplied; float32 on CUDA as `torch.set_float32_matmul_precision` says.
    """
    n: int = 128 * round((FLOPS.get(device.type, FLOPS["cpu"]) / 2) ** (1 / 3) / 128)
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(n, n, generator=generator).to(device, dtype) for _ in range(2))
    product = a @ b
    fastest, stop = float("inf"), now(device) + SECONDS
    while (began := now(device)) < stop or fastest == float("inf"):
        torch.mm(a, b, out=product)
        fastest = min(fastest, now(device) - began)
    return 2.0 * n**3 / fastest


def now(device: torch.device) -> float:
    """Seconds by a clock, once the device has done all that was queued."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
