"""Errors that have a remedy, and those that are left as they are."""

from __future__ import annotations

import errno

import pytest
import torch

from lit_align.runtime.failures import remedy


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (
            torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 MiB.\nmore"),
            "The device's memory is full: CUDA",
        ),
        (MemoryError(), "The machine's memory is full: no more could be had."),
    ],
)
def test_what_to_do_when_memory_is_full(error: Exception, said: str):
    sentence = remedy(error)
    assert sentence is not None
    assert sentence.startswith(said)
    for setting in ("batch_size", "accumulate_grad_batches", "max_length", "layout", "precision", "lora", "max_rows"):
        assert setting in sentence
    assert "\n" not in sentence


def test_the_error_of_torch_on_a_cpu_is_known():
    with pytest.raises(RuntimeError) as raised:
        torch.empty(2**60, dtype=torch.uint8)
    assert "machine's memory is full" in str(remedy(raised.value))


def test_a_full_disk_is_named():
    said = remedy(OSError(errno.ENOSPC, "No space left on device", "runs/g/a/model"))
    assert said is not None
    assert said.startswith("The disk is full at runs/g/a/model: No space left on device. Free some space")


@pytest.mark.parametrize("error", [RuntimeError("shapes differ"), OSError(errno.ENOENT, "gone"), ValueError("x")])
def test_other_errors_are_left_alone(error: Exception):
    assert remedy(error) is None
