"""What every preference loss must do, and the losses of the margin by hand.

The worked pair: log pi(w) = -4 against -5 under the reference, log pi(l) = -9 against -8, 4 and 5 tokens.
So h_w = 1, h_l = -1, D = 2, and at beta = 0.5 the logit beta D is 1.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch
from torch import Tensor

from lit_align.errors import UserError
from lit_align.losses import (
    AOT,
    CDPO,
    CPO,
    DPO,
    DPOP,
    IPO,
    ORPO,
    RDPO,
    AOTUnpaired,
    APODown,
    APOZero,
    BCOPair,
    DiscoPOP,
    EXOPair,
    Hinge,
    NCAPair,
    PairLogps,
    PreferenceLoss,
    RobustDPO,
    SigmoidNorm,
    SimPO,
    SPPOHard,
)

ALL: list[PreferenceLoss] = [
    DPO(),
    CDPO(),
    RobustDPO(),
    EXOPair(),
    IPO(),
    IPO(length_average=True),
    SigmoidNorm(),
    Hinge(),
    RDPO(),
    DPOP(),
    DiscoPOP(),
    NCAPair(),
    BCOPair(),
    BCOPair(reward_shift=True),
    SPPOHard(),
    APOZero(),
    APODown(),
    AOT(),
    AOTUnpaired(),
    SimPO(),
    CPO(),
    ORPO(),
]
LN2 = math.log(2)
SIGMOID_1 = 1 / (1 + math.exp(-1))


def make_pairs(
    chosen: list[float],
    rejected: list[float],
    ref_chosen: list[float],
    ref_rejected: list[float],
    lengths: tuple[list[int], list[int]] | None = None,
) -> PairLogps:
    """Pairs in float32 whose policy log-probabilities take gradients."""
    chosen_length, rejected_length = lengths or ([4] * len(chosen), [5] * len(chosen))
    return PairLogps(
        chosen=torch.tensor(chosen, requires_grad=True),
        rejected=torch.tensor(rejected, requires_grad=True),
        ref_chosen=torch.tensor(ref_chosen),
        ref_rejected=torch.tensor(ref_rejected),
        chosen_length=torch.tensor(chosen_length),
        rejected_length=torch.tensor(rejected_length),
    )


def worked_pair() -> PairLogps:
    return make_pairs([-4.0], [-9.0], [-5.0], [-8.0])


def at_reference(lengths: tuple[list[int], list[int]] = ([4], [4])) -> PairLogps:
    return make_pairs([-4.0], [-4.0], [-4.0], [-4.0], lengths)


def gradients(loss: PreferenceLoss, pairs: PairLogps) -> tuple[Tensor, Tensor]:
    chosen, rejected = torch.autograd.grad(loss(pairs).sum(), (pairs.chosen, pairs.rejected), allow_unused=True)
    zeros = torch.zeros_like(pairs.chosen)
    return zeros if chosen is None else chosen, zeros if rejected is None else rejected


@pytest.mark.parametrize(
    ("loss", "expected"),
    [
        (DPO(beta=0.5), -math.log(SIGMOID_1)),
        (CDPO(beta=0.5, epsilon=0.2), -0.8 * math.log(SIGMOID_1) - 0.2 * math.log(1 - SIGMOID_1)),
        (RobustDPO(beta=0.5, epsilon=0.2), (-0.8 * math.log(SIGMOID_1) + 0.2 * math.log(1 - SIGMOID_1)) / 0.6),
        (
            EXOPair(beta=0.5, epsilon=0.2),
            SIGMOID_1 * math.log(SIGMOID_1 / 0.8) + (1 - SIGMOID_1) * math.log((1 - SIGMOID_1) / 0.2),
        ),
        (IPO(beta=0.5), 1.0),  # (2 - 1)^2
        (IPO(beta=0.5, length_average=True), 0.3025),  # (1/4 + 1/5 - 1)^2
        (SigmoidNorm(beta=2.0), math.log(1 + math.exp(-0.9))),  # 2 (1/4 + 1/5)
        (Hinge(beta=0.25), 0.5),
        (RDPO(beta=0.5, alpha=0.5), LN2 + math.log(math.cosh(0.25)) - 0.25),  # logit 1 + 0.5 (4 - 5) = 0.5
        (DPOP(beta=0.5, penalty=3.0), -math.log(SIGMOID_1)),  # the better response gained: no penalty
        (DiscoPOP(beta=0.5, tau=1.0), -(1 - SIGMOID_1) * math.log(SIGMOID_1) + SIGMOID_1 * math.exp(-1)),
    ],
    ids=lambda value: repr(value) if isinstance(value, PreferenceLoss) else "",
)
def test_by_hand(loss: PreferenceLoss, expected: float) -> None:
    torch.testing.assert_close(loss(worked_pair()), torch.tensor([expected]), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("loss", "expected"),
    [
        (DPO(), LN2),
        (CDPO(), LN2),
        (RobustDPO(), LN2),
        (EXOPair(epsilon=0.2), -LN2 - (math.log(0.8) + math.log(0.2)) / 2),
        (IPO(beta=0.5), 1.0),
        (IPO(beta=0.5, length_average=True), 1.0),
        (SigmoidNorm(), LN2),
        (Hinge(), 1.0),
        (RDPO(), LN2),
        (DPOP(), LN2),
        (DiscoPOP(), (LN2 + 1) / 2),
        (NCAPair(), 2 * LN2),
        (BCOPair(), 2 * LN2),
        (BCOPair(reward_shift=True), 2 * LN2),
        (SPPOHard(beta=0.5), 2.0),
        (APOZero(), 1.0),
        (APODown(), 1.0),
        (AOT(), LN2),
        (AOTUnpaired(), LN2),
        (SimPO(gamma=0.0), LN2),
        (CPO(), LN2 + 1.0),  # the mean of -4 over 4 tokens
        (ORPO(beta=0.5), 1.0 + LN2 / 2),
    ],
    ids=lambda value: repr(value) if isinstance(value, PreferenceLoss) else "",
)
def test_value_where_policy_is_the_reference(loss: PreferenceLoss, expected: float) -> None:
    torch.testing.assert_close(loss(at_reference()), torch.tensor([expected]), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("loss", ALL, ids=repr)
def test_gradient_at_the_reference_prefers_the_better_response(loss: PreferenceLoss) -> None:
    if isinstance(loss, DiscoPOP):
        pytest.skip("it does so for a wide tau only, see below")
    chosen, rejected = gradients(loss, at_reference())
    assert chosen.item() < rejected.item()
    assert chosen.item() < 0 or isinstance(loss, APODown)  # which is flat in the better response there
    assert rejected.item() > 0


@pytest.mark.parametrize("loss", ALL, ids=repr)
@pytest.mark.parametrize("beta", [0.001, 0.1, 10.0])
@pytest.mark.parametrize("h_w", [-1e4, 0.0, 1e4])
@pytest.mark.parametrize("h_l", [-1e4, 0.0, 1e4])
def test_extreme_log_ratios_stay_finite(loss: PreferenceLoss, beta: float, h_w: float, h_l: float) -> None:
    loss = dataclasses.replace(loss, beta=beta)
    pairs = make_pairs([min(h_w, 0.0)], [min(h_l, 0.0)], [min(-h_w, 0.0)], [min(-h_l, 0.0)])
    for value in (loss(pairs), *gradients(loss, pairs)):
        assert value.isfinite().all()


@pytest.mark.parametrize("loss", ALL, ids=repr)
def test_gradients_agree_with_differences(loss: PreferenceLoss) -> None:
    chosen = torch.tensor([-4.0, -7.5, -3.2], dtype=torch.double, requires_grad=True)
    rejected = torch.tensor([-9.0, -6.0, -3.1], dtype=torch.double, requires_grad=True)
    reference = (
        torch.tensor([-5.0, -7.0, -3.0], dtype=torch.double),
        torch.tensor([-8.0, -7.2, -3.3], dtype=torch.double),
    )
    lengths = torch.tensor([4, 5, 2]), torch.tensor([5, 3, 2])
    if isinstance(loss, BCOPair) and loss.reward_shift:
        pytest.skip("its shift carries no gradient, by definition")

    def of_policy(chosen: Tensor, rejected: Tensor) -> Tensor:
        return loss(PairLogps(chosen, rejected, *reference, *lengths))

    assert torch.autograd.gradcheck(of_policy, (chosen, rejected))


@pytest.mark.parametrize("loss", ALL, ids=repr)
def test_one_value_a_pair_in_any_order(loss: PreferenceLoss) -> None:
    pairs = make_pairs(
        [-4.0, -7.5, -3.2], [-9.0, -6.0, -3.1], [-5.0, -7.0, -3.0], [-8.0, -7.2, -3.3], ([4, 5, 2], [5, 3, 2])
    )
    order = torch.tensor([2, 0, 1])
    values, moved = loss(pairs), loss(PairLogps(*(field[order] for field in pairs if field is not None)))
    assert values.shape == (3,)
    if isinstance(loss, AOT | AOTUnpaired):  # one value a quantile
        torch.testing.assert_close(moved, values, rtol=1e-6, atol=1e-6)
    else:
        torch.testing.assert_close(moved, values[order], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("loss", ALL, ids=repr)
def test_no_pairs_give_no_values(loss: PreferenceLoss) -> None:
    assert loss(make_pairs([], [], [], [])).shape == (0,)


@pytest.mark.parametrize("loss", ALL, ids=repr)
def test_rewards_are_for_logging_and_scale_with_beta(loss: PreferenceLoss) -> None:
    chosen, rejected = dataclasses.replace(loss, beta=0.5).rewards(worked_pair())
    if isinstance(loss, SimPO | ORPO):
        expected = (-0.5, -0.9)  # beta / 4 of -4, beta / 5 of -9
    elif isinstance(loss, CPO):
        expected = (-2.0, -4.5)
    elif isinstance(loss, SigmoidNorm) or (isinstance(loss, IPO) and loss.length_average):
        expected = (0.125, -0.1)
    else:
        expected = (0.5, -0.5)
    torch.testing.assert_close((chosen.item(), rejected.item()), expected)
    assert not chosen.requires_grad
    assert not rejected.requires_grad


@pytest.mark.parametrize("loss", ALL, ids=repr)
def test_beta_must_be_positive(loss: PreferenceLoss) -> None:
    for beta in (0.0, -0.1, math.inf, math.nan):
        with pytest.raises(UserError, match="beta must be a positive number"):
            dataclasses.replace(loss, beta=beta)


@pytest.mark.parametrize("loss", ALL, ids=repr)
def test_reference_is_needed_where_a_loss_says_so(loss: PreferenceLoss) -> None:
    pairs = worked_pair()._replace(ref_chosen=None, ref_rejected=None)
    if loss.needs_reference:
        with pytest.raises(ValueError, match="needs_reference must be True"):
            loss(pairs)
    else:
        torch.testing.assert_close(loss(pairs), loss(worked_pair()))


@pytest.mark.parametrize("kind", [CDPO, RobustDPO, EXOPair])
@pytest.mark.parametrize("epsilon", [-0.1, 0.5, 1.0, math.nan])
def test_flip_rates_outside_their_range_are_refused(kind: type[CDPO | RobustDPO | EXOPair], epsilon: float) -> None:
    with pytest.raises(UserError, match="epsilon"):
        kind(epsilon=epsilon)


def test_other_hyper_parameters_outside_their_range_are_refused() -> None:
    with pytest.raises(UserError, match="epsilon must be a positive number"):
        EXOPair(epsilon=0.0)
    with pytest.raises(UserError, match="alpha must be a positive number"):
        RDPO(alpha=0.0)
    with pytest.raises(UserError, match="penalty must be a positive number"):
        DPOP(penalty=-1.0)
    for tau in (0.0, 1.5):
        with pytest.raises(UserError, match=r"tau must lie in \(0, 1\]"):
            DiscoPOP(tau=tau)


@pytest.mark.parametrize("loss", [CDPO(epsilon=0.0), RobustDPO(epsilon=0.0)], ids=repr)
def test_without_flipped_labels_it_is_dpo(loss: PreferenceLoss) -> None:
    pairs = make_pairs([-4.0, -7.5], [-9.0, -6.0], [-5.0, -7.0], [-8.0, -7.2])
    torch.testing.assert_close(loss(pairs), DPO()(pairs))


@pytest.mark.parametrize("loss", [CDPO(beta=0.5, epsilon=0.2), EXOPair(beta=0.5, epsilon=0.2)], ids=repr)
def test_smoothed_labels_have_a_best_margin(loss: PreferenceLoss) -> None:
    best = math.log(0.8 / 0.2) / 0.5
    chosen, rejected = gradients(loss, make_pairs([best - 3], [-3.0], [-3.0], [-3.0]))
    torch.testing.assert_close((chosen.item(), rejected.item()), (0.0, 0.0), rtol=0, atol=1e-6)


def test_robust_dpo_is_unbiased_under_flipped_labels() -> None:
    pairs = make_pairs([-4.0, -7.5], [-9.0, -6.0], [-5.0, -7.0], [-8.0, -7.2])
    flipped = pairs._replace(
        chosen=pairs.rejected, rejected=pairs.chosen, ref_chosen=pairs.ref_rejected, ref_rejected=pairs.ref_chosen
    )
    robust = RobustDPO(epsilon=0.3)
    torch.testing.assert_close(0.7 * robust(pairs) + 0.3 * robust(flipped), DPO()(pairs))


def test_ipo_draws_the_margin_to_a_half_over_beta() -> None:
    pairs = make_pairs([-4.0, -2.0], [-9.0, -9.0], [-5.0, -5.0], [-8.0, -8.0])  # margins 2 and 4
    chosen, _ = gradients(IPO(beta=1 / 6), pairs)
    torch.testing.assert_close(chosen, torch.tensor([-2.0, 2.0]))  # 2 (D - 3)


def test_hinge_is_flat_beyond_its_margin() -> None:
    chosen, rejected = gradients(Hinge(beta=0.6), worked_pair())
    assert (chosen.item(), rejected.item()) == (0.0, 0.0)


def test_a_longer_better_response_teaches_rdpo_less() -> None:
    longer, _ = gradients(RDPO(alpha=0.1), at_reference(([9], [4])))
    shorter, _ = gradients(RDPO(alpha=0.1), at_reference(([4], [9])))
    assert -shorter.item() > -longer.item() > 0


def test_dpop_fines_a_better_response_that_becomes_less_likely() -> None:
    pairs = make_pairs([-6.0], [-12.0], [-5.0], [-8.0])  # h_w = -1, h_l = -4
    torch.testing.assert_close(DPOP(beta=0.5, penalty=4.0)(pairs), torch.tensor([math.log(1 + math.exp(0.5))]))
    chosen, rejected = gradients(DPOP(beta=0.5, penalty=4.0), pairs)
    torch.testing.assert_close(chosen / rejected, torch.tensor([-5.0]))  # 1 + penalty


@pytest.mark.parametrize("tau", [0.05, 0.1, 0.11, 1.0])
def test_discopop_starts_the_wrong_way_below_a_tau_of_a_tenth(tau: float) -> None:
    chosen, _ = gradients(DiscoPOP(beta=1.0, tau=tau), at_reference())
    torch.testing.assert_close(chosen, torch.tensor([(1 - LN2) / (4 * tau) - 0.75]))


@dataclass(frozen=True)
class Squared(PreferenceLoss):
    """A loss of a user's own, all of it."""

    needs_reference: ClassVar[bool] = False
    target: float = 1.0

    def __call__(self, pairs: PairLogps) -> Tensor:
        return (pairs.chosen - pairs.rejected - self.target).square()


def test_a_loss_of_ones_own_is_one_frozen_dataclass() -> None:
    loss = Squared(target=2.0)
    torch.testing.assert_close(loss(worked_pair()), torch.tensor([9.0]))
    assert loss.beta == 0.1
    with pytest.raises(dataclasses.FrozenInstanceError):
        loss.target = 3.0  # type: ignore[misc]
    with pytest.raises(TypeError, match="abstract"):
        PreferenceLoss()  # type: ignore[abstract]
