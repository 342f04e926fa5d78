import math

import pytest
import torch
from torch import tensor

from lit_align.errors import UserError
from lit_align.losses.ppo import PPOLoss, clipped_policy_loss, clipped_value_loss

# Every case of sign of the advantage and side of the clip, at eps = .2.
RATIOS = [1.0, 1.1, 1.5, 0.5, 1.5, 0.5]
ADVANTAGES = [2.0, -1.0, 1.0, 1.0, -1.0, -1.0]
LOSSES = [-2.0, 1.1, -1.2, -0.5, 1.5, 0.8]
CLIPPED = [False, False, True, False, False, True]


def policy_loss(ratios, advantages, clip=0.2):
    logps = tensor([math.log(ratio) - 3 for ratio in ratios], requires_grad=True)
    return logps, clipped_policy_loss(logps, torch.full((len(ratios),), -3.0), tensor(advantages), clip)


def test_policy_loss_by_hand():
    _, out = policy_loss(RATIOS, ADVANTAGES)
    assert out.losses.tolist() == pytest.approx(LOSSES, abs=1e-5)
    assert out.ratio.tolist() == pytest.approx(RATIOS, abs=1e-5)
    assert out.clipped.tolist() == CLIPPED
    expected = [ratio - 1 - math.log(ratio) for ratio in RATIOS]
    assert out.approx_kl.tolist() == pytest.approx(expected, abs=1e-5)


def test_policy_gradient_is_minus_advantage_times_ratio_and_none_where_clipped():
    logps, out = policy_loss(RATIOS, ADVANTAGES)
    out.losses.sum().backward()
    expected = [0.0 if c else -a * r for a, r, c in zip(ADVANTAGES, RATIOS, CLIPPED, strict=True)]
    assert logps.grad.tolist() == pytest.approx(expected, abs=1e-5)


def test_only_the_loss_carries_a_gradient():
    logps = torch.zeros(2, requires_grad=True)
    old_logps, advantages = torch.zeros(2, requires_grad=True), torch.ones(2, requires_grad=True)
    out = clipped_policy_loss(logps, old_logps, advantages, 0.2)
    assert [value.requires_grad for value in out] == [True, False, False, False]
    out.losses.sum().backward()
    assert old_logps.grad is None
    assert advantages.grad is None


def test_at_the_first_minibatch_the_ratio_is_one():
    _, out = policy_loss([1.0] * 3, [1.0, -1.0, 0.0])
    assert out.ratio.tolist() == [1, 1, 1]
    assert out.approx_kl.tolist() == [0, 0, 0]
    assert not out.clipped.any()


@pytest.mark.parametrize("gap", [1e4, -1e4])
@pytest.mark.parametrize("advantage", [1.0, 0.0, -1.0])
def test_extreme_ratios_stay_finite(gap, advantage):
    logps = tensor([gap], requires_grad=True)
    out = clipped_policy_loss(logps, torch.zeros(1), tensor([advantage]), 0.2)
    out.losses.backward()
    assert all(value.isfinite().all() for value in out)
    assert logps.grad.isfinite().all()


def test_the_object_is_the_function():
    logps, old_logps, advantages = tensor([-1.0, -2.0]), tensor([-1.5, -2.1]), tensor([1.0, -1.0])
    ours = PPOLoss(0.3)(logps, old_logps, advantages, tensor([0, 1]))
    # rho = e^.5 held at 1.3; rho = e^.1.
    assert ours.losses.tolist() == pytest.approx([-1.3, math.exp(0.1)], abs=1e-5)
    assert PPOLoss() == PPOLoss(clip=0.2)


@pytest.mark.parametrize("clip", [0.0, -0.2, math.inf])
def test_a_clip_that_is_no_distance_is_refused(clip):
    with pytest.raises(UserError, match="clip must be a positive number"):
        PPOLoss(clip)
    with pytest.raises(UserError, match="clip must be a positive number"):
        clipped_value_loss(torch.zeros(1), torch.zeros(1), torch.zeros(1), clip)


def test_value_loss_by_hand():
    # (V, V_old, R): unmoved; moved within eps; moved past eps towards R: held; moved past eps away from R: the true error.
    values, old_values = tensor([1.0, 1.1, 2.0, 0.0]), tensor([1.0, 1.0, 1.0, 1.0])
    returns = tensor([3.0, 3.0, 3.0, 3.0])
    losses = clipped_value_loss(values.requires_grad_(), old_values, returns, 0.2)
    assert losses.tolist() == pytest.approx([2.0, 1.805, 1.62, 4.5], abs=1e-5)
    losses.sum().backward()
    assert values.grad.tolist() == pytest.approx([-2.0, -1.9, 0.0, -3.0], abs=1e-5)


def test_value_loss_has_no_gradient_to_what_was_sampled():
    values, old_values, returns = (torch.ones(2, requires_grad=True) for _ in range(3))
    clipped_value_loss(values, old_values, returns, 0.2).sum().backward()
    assert old_values.grad is None
    assert returns.grad is None
