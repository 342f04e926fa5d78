"""KTO by hand. beta = 0.5, z0 = 1: a desirable response with h = 3 gains 1 in beta (h - z0)."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch

from lit_align.errors import UserError
from lit_align.losses import KTO, LabelLoss

LABELS = torch.tensor([True, False])


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def test_by_hand() -> None:
    loss = KTO(beta=0.5, desirable_weight=2.0, undesirable_weight=3.0)
    values = loss(torch.tensor([3.0, 2.0]), LABELS, torch.tensor(1.0))
    torch.testing.assert_close(values, torch.tensor([2 * (1 - sigmoid(1.0)), 3 * (1 - sigmoid(-0.5))]))


def test_value_where_policy_is_the_reference() -> None:
    torch.testing.assert_close(KTO()(torch.zeros(2), LABELS, torch.tensor(0.0)), torch.tensor([0.5, 0.5]))


def test_desirable_is_pushed_up_and_undesirable_down() -> None:
    log_ratios = torch.zeros(2, requires_grad=True)
    (gradient,) = torch.autograd.grad(KTO(beta=0.4)(log_ratios, LABELS, torch.tensor(0.0)).sum(), log_ratios)
    torch.testing.assert_close(gradient, torch.tensor([-0.1, 0.1]))


def test_gains_saturate() -> None:
    log_ratios = torch.tensor([40.0, -40.0], requires_grad=True)
    (gradient,) = torch.autograd.grad(KTO(beta=1.0)(log_ratios, LABELS, torch.tensor(0.0)).sum(), log_ratios)
    torch.testing.assert_close(gradient, torch.zeros(2), rtol=0, atol=1e-6)


def test_a_negative_z0_counts_as_none() -> None:
    log_ratios = torch.tensor([3.0, 2.0])
    torch.testing.assert_close(
        KTO()(log_ratios, LABELS, torch.tensor(-5.0)), torch.tensor([1 - sigmoid(0.3), 1 - sigmoid(-0.2)])
    )


def test_z0_takes_no_gradient() -> None:
    z0 = torch.tensor(1.0, requires_grad=True)
    values = KTO()(torch.zeros(2, requires_grad=True), LABELS, z0)
    (gradient,) = torch.autograd.grad(values.sum(), z0, allow_unused=True)
    assert gradient is None


@pytest.mark.parametrize("h", [-1e4, 1e4])
@pytest.mark.parametrize("z0", [0.0, 1e4])
def test_extreme_log_ratios_stay_finite(h: float, z0: float) -> None:
    log_ratios = torch.tensor([h, h], requires_grad=True)
    values = KTO(beta=10.0)(log_ratios, LABELS, torch.tensor(z0))
    (gradient,) = torch.autograd.grad(values.sum(), log_ratios)
    assert values.isfinite().all()
    assert gradient.isfinite().all()


def test_rewards_are_for_logging() -> None:
    rewards = KTO(beta=0.5).rewards(torch.tensor([3.0, -2.0], requires_grad=True))
    torch.testing.assert_close(rewards, torch.tensor([1.5, -1.0]))
    assert not rewards.requires_grad


def test_bad_hyper_parameters_are_refused() -> None:
    with pytest.raises(UserError, match="beta must be a positive number"):
        KTO(beta=0.0)
    with pytest.raises(UserError, match="undesirable_weight must be 0 or a positive number"):
        KTO(undesirable_weight=-1.0)
    with pytest.raises(UserError, match="desirable_weight must be 0 or a positive number"):
        dataclasses.replace(KTO(), desirable_weight=math.inf)
    with pytest.raises(TypeError, match="abstract"):
        LabelLoss()  # type: ignore[abstract]
