from __future__ import annotations

import warnings

import pytest
import torch
from lightning.pytorch import Trainer

from lit_align.runtime import precision as of_precision
from lit_align.runtime.precision import bf16_over_float32, warn_of_lost_updates, warn_of_slow_bf16


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


class Kahan(torch.optim.AdamW):
    """Of another package, which is known by its module."""


def with_optimizer(kind: type[torch.optim.Optimizer], *dtypes: torch.dtype) -> Trainer:
    trained = trainer("32-true")
    trained.strategy.optimizers = [kind([torch.nn.Parameter(torch.ones(2, dtype=dtype)) for dtype in dtypes], lr=1e-5)]
    return trained


def test_an_optimizer_that_loses_updates_to_bf16_weights_is_warned_of_with_what_to_take():
    with pytest.warns(UserWarning, match=r"AdamW loses every update .*bf16-mixed, policy.dtype: float32.*optimi.AdamW"):
        warn_of_lost_updates(with_optimizer(torch.optim.AdamW, torch.float32, torch.bfloat16))


def test_float32_weights_and_other_optimizers_are_not_warned_of():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warn_of_lost_updates(with_optimizer(torch.optim.AdamW, torch.float32))
        warn_of_lost_updates(with_optimizer(Kahan, torch.bfloat16))


def test_bf16_weights_stand_still_where_float32_ones_move():
    """The fact that is warned of: from 1, the next number of bfloat16 below is 1 - 1/256."""
    moved = {}
    for dtype in (torch.float32, torch.bfloat16):
        (group,) = with_optimizer(torch.optim.AdamW, dtype).optimizers[0].param_groups
        optimizer = torch.optim.AdamW(group["params"], lr=1e-3, weight_decay=0.0)
        for _ in range(10):
            group["params"][0].grad = torch.ones(2, dtype=dtype)
            optimizer.step()
        moved[dtype] = float(group["params"][0].detach()[0])
    assert moved[torch.float32] == pytest.approx(0.99, abs=1e-5)
    assert moved[torch.bfloat16] == 1
