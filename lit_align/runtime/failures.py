"""Errors of torch and the operating system that have a remedy, as the sentence that names it."""

from __future__ import annotations

import errno

import torch

MEMORY = (
    "Make less of it at once: a smaller data.batch_size (or data.tokens_per_batch) with a larger "
    "trainer.accumulate_grad_batches (the same steps), a smaller data.max_length, data.layout: shared, "
    "trainer.precision: bf16-mixed, model.policy.lora; for methods that sample, "
    "a smaller model.rollout.max_rows and more model.minibatches; for validation, a smaller data.val_batch_size."
)
FULL = (errno.ENOSPC, errno.EDQUOT)


def remedy(error: BaseException) -> str | None:
    """What a person can do about an error, as sentences; None for one that is not known here."""
    first_line = str(error).strip().partition("\n")[0]
    if isinstance(error, torch.OutOfMemoryError):
        return f"The device's memory is full: {first_line} {MEMORY}"
    on_cpu = isinstance(error, RuntimeError) and "DefaultCPUAllocator" in str(error)
    if on_cpu or isinstance(error, MemoryError):
        return f"The machine's memory is full: {first_line or 'no more could be had'}. {MEMORY}"
    if isinstance(error, OSError) and error.errno in FULL:
        where = f" at {error.filename}" if error.filename else ""
        return f"The disk is full{where}: {error.strerror}. Free some space; the checkpoints that were there are whole."
    return None
