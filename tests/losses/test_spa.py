"""SPA's maths: worked numbers, the released loss written from its formulas, and the thresholds."""

from __future__ import annotations

import math

import pytest
import torch

from lit_align.errors import UserError
from lit_align.losses.spa import (
    GlobalWindow,
    ReleasedThreshold,
    SelfRefinement,
    extrapolate,
    preference_judgement,
    refined_loss,
)


def test_judgement_of_the_less_likely_response():
    policy, sft = torch.tensor([-10.0, -8.0]), torch.tensor([-12.0, -9.0])
    first, second = (policy - sft)[:1], (policy - sft)[1:]
    assert preference_judgement(first, second, 0.1).item() == pytest.approx(0.524979, abs=1e-6)
    assert preference_judgement(second, first, 0.1).item() == pytest.approx(1 - 0.524979, abs=1e-6)
    assert preference_judgement(first, first, 0.1).item() == 0.5


def test_worked_losses():
    margins = torch.tensor([0.1 * ((-10 + 14) - (-11 + 12))] * 2)  # 0.3
    losses = refined_loss(margins, torch.tensor([False, True]), alpha=0.1)
    torch.testing.assert_close(losses, torch.tensor([0.554355, 0.584355]), atol=1e-6, rtol=0)


@pytest.mark.parametrize("alpha", [0.0, 0.1, 0.5])
@pytest.mark.parametrize("is_noisy", [False, True])
def test_a_round_begins_at_log_2(alpha, is_noisy):
    loss = refined_loss(torch.zeros(1), torch.tensor([is_noisy]), alpha)
    assert loss.item() == pytest.approx(math.log(2), abs=1e-6)


def test_smoothing_weakens_the_push_and_turns_it_beyond_its_best_margin():
    margins = torch.tensor([0.0, 0.0, 5.0], requires_grad=True)
    refined_loss(margins, torch.tensor([False, True, True]), 0.1).sum().backward()
    # d/dm = sigmoid(m) - (1 - alpha z): -1/2, -0.4, and 0.0933 beyond m = log 9
    torch.testing.assert_close(margins.grad, torch.tensor([-0.5, -0.4, 0.993307 - 0.9]), atol=1e-5, rtol=0)


def test_alpha_0_is_dpo_to_the_last_bit():
    margins = torch.randn(50, generator=torch.Generator().manual_seed(0)) * 5
    is_noisy = torch.arange(50) % 2 == 0
    smoothed, plain = margins.clone().requires_grad_(), margins.clone().requires_grad_()
    loss = refined_loss(smoothed, is_noisy, 0.0)
    expected = -torch.nn.functional.logsigmoid(plain)
    loss.sum().backward()
    expected.sum().backward()
    assert torch.equal(loss, expected)
    assert torch.equal(smoothed.grad, plain.grad)


def test_extreme_margins_are_finite():
    margins = torch.tensor([1e4, -1e4], requires_grad=True)
    losses = refined_loss(margins, torch.tensor([True, True]), 0.1)
    losses.sum().backward()
    assert losses.isfinite().all()
    assert margins.grad.isfinite().all()


@pytest.mark.parametrize(
    ("logits", "ref_logits", "expected"),
    [
        ([1.0, 0.0], [0.0, 0.0], [-0.201413, -1.701413]),
        ([2.0, 1.0, 0.0], [1.0, 1.0, 0.0], [-0.2664, -1.7664, -2.7664]),
    ],
)
def test_extrapolated_logits_are_normalised_afterwards(logits, ref_logits, expected):
    mixed = extrapolate(torch.tensor(logits), torch.tensor(ref_logits), 0.5).log_softmax(-1)
    torch.testing.assert_close(mixed, torch.tensor(expected), atol=1e-4, rtol=0)
    # Log-probabilities in place of logits give the same, because constants of a position cancel in the softmax.
    of_logps = extrapolate(torch.tensor(logits).log_softmax(-1), torch.tensor(ref_logits).log_softmax(-1), 0.5)
    torch.testing.assert_close(of_logps.log_softmax(-1), mixed)


def test_extrapolation_sharpens_a_margin():
    better, worse, none = torch.tensor([1.0, 0.0]), torch.tensor([-1.0, 0.0]), torch.zeros(2)

    def margin(extrapolation):
        of = [extrapolate(logits, none, extrapolation).log_softmax(-1)[0] for logits in (better, worse)]
        return (of[0] - of[1]).item()

    # One token each, the reference's logits 0: the margins are 1.0 and 1.5 by hand.
    assert margin(0.0) == pytest.approx(1.0, abs=1e-6)
    assert margin(0.5) == pytest.approx(1.5, abs=1e-6)


def test_extrapolation_0_is_the_policy():
    logits = torch.randn(3, 7)
    assert torch.equal(extrapolate(logits, torch.randn(3, 7), 0.0), logits)


def test_released_threshold_of_fifty_means():
    threshold, margins = ReleasedThreshold(), torch.arange(1, 51) / 100
    seen = list(margins[torch.randperm(50)].split(1))
    assert threshold(seen[:49]) == 0.0
    assert threshold(seen) == pytest.approx(0.065, abs=1e-6)
    assert int((margins <= threshold(seen)).sum()) == 6
    assert len(threshold.kept([*seen, torch.ones(1)])) == 50
    halves = [torch.stack([m - 1, m + 1]).flatten() for m in seen]  # the same means, wide apart
    assert threshold(halves) == pytest.approx(0.065, abs=1e-6)


def test_window_is_a_percentile_of_whole_steps():
    threshold = GlobalWindow(percentile=10, window=30)
    assert threshold([]) == -math.inf
    margins = torch.arange(1, 51) / 100
    assert threshold([margins[40:], margins[:40]]) == pytest.approx(0.059, abs=1e-6)  # 0.01 + 0.1 * 49 steps of 0.01
    seen = []
    for step in margins.split(8):
        seen = threshold.kept([*seen, step])
    assert torch.equal(torch.cat(seen), margins[16:])  # 2 + 4 * 8 pairs are the fewest whole steps that hold 30
    assert threshold(seen) == pytest.approx(0.17 + 0.1 * 33 * 0.01, abs=1e-6)


def released_loss(policy, reference, extrapolated, beta, alpha, seen):
    """The released training loss for one batch, in its own order of things: (chosen, rejected) sums each."""
    logits = (policy[0] - policy[1]) - (reference[0] - reference[1])
    strong = (extrapolated[0] - extrapolated[1]) - (reference[0] - reference[1])
    threshold = 0.0
    if len(seen) == 50:
        ordered = sorted(seen)
        threshold = (ordered[5] + ordered[6]) / 2
    losses = []
    for m, g in zip((beta * logits).tolist(), (beta * strong).tolist(), strict=True):
        smoothing = alpha if g <= threshold else 0.0
        losses.append((1 - smoothing) * math.log1p(math.exp(-m)) + smoothing * math.log1p(math.exp(m)))
    seen.append((beta * strong).mean().item())
    del seen[:-50]
    return losses


def test_parity_with_the_released_loss():
    generator = torch.Generator().manual_seed(1)
    threshold, seen, theirs = ReleasedThreshold(), [], []
    for _ in range(80):
        policy, reference, extrapolated = (torch.randn(2, 4, generator=generator) * 10 for _ in range(3))
        margins = 0.1 * ((policy[0] - policy[1]) - (reference[0] - reference[1]))
        strong = 0.1 * ((extrapolated[0] - extrapolated[1]) - (reference[0] - reference[1]))
        ours = refined_loss(margins, strong <= threshold(seen), 0.1)
        seen = threshold.kept([*seen, strong])
        expected = released_loss(policy, reference, extrapolated, 0.1, 0.1, theirs)
        torch.testing.assert_close(ours, torch.tensor(expected), atol=1e-5, rtol=1e-5)


def test_alpha_waits_for_the_warm_up():
    refinement = SelfRefinement(alpha=0.1, warmup=0.2)
    assert [refinement.alpha_at(step, 11) for step in (0, 2, 3, 10)] == [0.0, 0.0, 0.1, 0.1]
    assert SelfRefinement(warmup=0.0).alpha_at(0, 11) == 0.1


@pytest.mark.parametrize(
    ("build", "sentence"),
    [
        (lambda: SelfRefinement(alpha=0.0), "refinement: null"),
        (lambda: SelfRefinement(alpha=0.6), "alpha"),
        (lambda: SelfRefinement(warmup=1.0), "warmup"),
        (lambda: SelfRefinement(lambdas=(0.5, -0.1)), "lambdas"),
        (lambda: GlobalWindow(percentile=0), "percentile"),
        (lambda: GlobalWindow(window=0), "window"),
    ],
)
def test_numbers_out_of_range_are_refused(build, sentence):
    with pytest.raises(UserError, match=sentence):
        build()
