from __future__ import annotations

import warnings

import pytest
import torch
from lightning.pytorch import Trainer

from lit_align.runtime import precision as of_precision
from lit_align.runtime.precision import bf16_over_float32, warn_of_slow_bf16


def trainer(precision: str) -> Trainer:
    return Trainer(accelerator="cpu", devices=1, precision=precision, logger=False, enable_checkpointing=False)


def times(monkeypatch: pytest.MonkeyPatch, bf16: float, float32: float) -> None:
    seconds = {torch.bfloat16: bf16, torch.float32: float32}
    monkeypatch.setattr(of_precision, "_seconds", lambda matrix: seconds[matrix.dtype])


@pytest.mark.parametrize("precision", ["bf16-mixed", "bf16-true"])
def test_a_device_that_is_slow_in_bf16_is_warned_of_with_what_to_set(monkeypatch, precision):
    times(monkeypatch, bf16=0.010, float32=0.004)
    with pytest.warns(UserWarning, match=rf"2.5 times as long.*cpu.*{precision} slows.*set it to 32-true"):
        warn_of_slow_bf16(trainer(precision))


@pytest.mark.parametrize(("precision", "bf16"), [("bf16-mixed", 0.001), ("bf16-mixed", 0.0041), ("32-true", 0.010)])
def test_nothing_is_said_where_bf16_is_as_quick_or_not_asked_for(monkeypatch, precision, bf16):
    times(monkeypatch, bf16=bf16, float32=0.004)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warn_of_slow_bf16(trainer(precision))


def test_it_is_measured_without_drawing_random_numbers():
    state = torch.get_rng_state()
    assert 0 < bf16_over_float32(torch.device("cpu")) < 1000
    assert torch.equal(state, torch.get_rng_state())
