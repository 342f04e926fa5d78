import math

import pytest
import torch
from torch import tensor

from lit_align.errors import UserError
from lit_align.losses.kl import AdaptiveKL, FixedKL, full_kl, k1, k2, k3

POLICY = tensor([0.5, 0.3, 0.2])
REFERENCE = tensor([0.25, 0.25, 0.5])
# .5 ln 2 + .3 ln 1.2 + .2 ln .4 = .346574 + .054696 - .183258
KL = 0.218012


def test_estimators_by_hand():
    # pi = .5, ref = .25: r = 1/2, log r = -ln 2.
    logps, ref_logps = tensor([math.log(0.5)]), tensor([math.log(0.25)])
    assert k1(logps, ref_logps).item() == pytest.approx(0.693147, abs=1e-6)
    assert k2(logps, ref_logps).item() == pytest.approx(0.240227, abs=1e-6)
    assert k3(logps, ref_logps).item() == pytest.approx(0.193147, abs=1e-6)
    # The other way round r = 2: the signs are not symmetric.
    assert k1(ref_logps, logps).item() == pytest.approx(-0.693147, abs=1e-6)
    assert k3(ref_logps, logps).item() == pytest.approx(0.306853, abs=1e-6)


@pytest.mark.parametrize("estimator", [k1, k3])
def test_k1_and_k3_are_unbiased(estimator):
    expectation = (POLICY * estimator(POLICY.log(), REFERENCE.log())).sum()
    assert expectation.item() == pytest.approx(KL, abs=1e-5)


def test_k2_is_not_unbiased():
    # Half of the mean of (ln 2)^2, (ln 1.2)^2 and (ln .4)^2: .480453, .033241 and .839589 by .5, .3 and .2.
    assert (POLICY * k2(POLICY.log(), REFERENCE.log())).sum().item() == pytest.approx(0.209058, abs=1e-5)


def test_equal_policies_have_no_divergence():
    logps = tensor([-1.0, -20.0, -0.1])
    for estimator in (k1, k2, k3):
        assert estimator(logps, logps).tolist() == [0, 0, 0]


def test_k3_keeps_its_digits_where_the_two_nearly_agree():
    # x^2 / 2 with x = 1e-4: r - 1 in float32 would leave one digit.
    logps = torch.zeros(1)
    assert k3(logps, tensor([1e-4])).item() == pytest.approx(5e-9, rel=0.02)


def test_the_gradient_of_k3_draws_the_policy_to_the_reference():
    logps = tensor([-1.0, -3.0], requires_grad=True)
    k3(logps, tensor([-2.0, -2.0])).sum().backward()
    # d/d log pi of r - 1 - log r is 1 - r.
    assert logps.grad.tolist() == pytest.approx([1 - math.exp(-1), 1 - math.exp(1)], abs=1e-5)


@pytest.mark.parametrize("gap", [1e4, -1e4])
def test_extreme_ratios_stay_finite(gap):
    for estimator in (k1, k2, k3):
        logps = tensor([gap], requires_grad=True)
        value = estimator(logps, torch.zeros(1))
        value.sum().backward()
        assert value.isfinite().all()
        assert logps.grad.isfinite().all()


def test_k3_never_drives_apart_what_is_far_apart():
    logps = tensor([-1e4], requires_grad=True)
    k3(logps, torch.zeros(1)).backward()
    assert logps.grad.item() == 0


def test_full_kl_by_hand_and_whatever_the_scale_of_the_logits():
    logits, ref_logits = POLICY.log() + 7, REFERENCE.log() - 3
    assert full_kl(logits, ref_logits).item() == pytest.approx(KL, abs=1e-5)
    stacked = full_kl(torch.stack([logits, ref_logits]), torch.stack([ref_logits, ref_logits]))
    assert stacked.tolist() == pytest.approx([KL, 0], abs=1e-5)
    assert full_kl(logits.bfloat16(), ref_logits).dtype == torch.float32


def test_full_kl_takes_tokens_that_cannot_be_drawn():
    # .5 of the mass on each of two tokens, against .25 and .25: ln 2.
    logits = tensor([0.0, 0.0, -math.inf], requires_grad=True)
    ref_logits = REFERENCE.log().roll(0)
    value = full_kl(logits, ref_logits)
    assert value.item() == pytest.approx(math.log(2), abs=1e-5)
    value.backward()
    assert logits.grad.isfinite().all()
    both = full_kl(tensor([0.0, -math.inf]), tensor([0.0, -math.inf]))
    assert both.item() == 0
    assert full_kl(tensor([0.0, 0.0]), tensor([0.0, -math.inf])).item() == math.inf


def test_adaptive_kl_by_hand():
    controller = AdaptiveKL(0.2, target=6.0, horizon=1000)
    controller.update(6.6, 100)  # error .1
    assert controller.beta == pytest.approx(0.2 * 1.01)
    controller.update(60.0, 100)  # error 9, held at .2
    assert controller.beta == pytest.approx(0.2 * 1.01 * 1.02)
    controller.update(0.0, 500)  # error -1, held at -.2
    assert controller.beta == pytest.approx(0.2 * 1.01 * 1.02 * 0.9)


def test_adaptive_kl_goes_on_from_its_state():
    first, second = AdaptiveKL(0.2, target=6.0), AdaptiveKL(0.9, target=6.0)
    first.update(12.0, 512)
    second.load_state_dict(first.state_dict())
    for controller in (first, second):
        controller.update(3.0, 512)
    assert first.beta == second.beta != 0.9


def test_fixed_kl_stays_where_the_configuration_puts_it():
    controller = FixedKL(0.05)
    controller.update(100.0, 512)
    controller.load_state_dict(FixedKL(0.3).state_dict())
    assert controller.beta == 0.05
    assert FixedKL(0).beta == 0


def test_bad_settings_are_refused():
    for build in (
        lambda: FixedKL(-0.1),
        lambda: FixedKL(math.nan),
        lambda: AdaptiveKL(0, target=6),
        lambda: AdaptiveKL(0.1, target=0),
        lambda: AdaptiveKL(0.1, target=6, horizon=0),
    ):
        with pytest.raises(UserError, match="must be"):
            build()
    with pytest.raises(UserError, match="set it above 102"):
        AdaptiveKL(0.1, target=6, horizon=100).update(6, 512)
    with pytest.raises(ValueError, match="is nan"):
        AdaptiveKL(0.1, target=6).update(math.nan, 8)
