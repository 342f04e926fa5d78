"""Reward losses by hand, and against loops over `itertools.combinations`."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from lit_align.errors import UserError
from lit_align.losses import BinaryCritique, BradleyTerry, KWise, PlackettLuce, Regression, RewardLoss

SIZES = [2, 5, 1, 3, 9, 4]


@dataclass
class Ragged:
    """Groups of `SIZES` responses: rewards, scores with ties (the last group tied throughout), margins."""

    rewards: Tensor
    scores: Tensor
    group_index: Tensor
    margins: Tensor

    def groups(self) -> list[tuple[list[float], list[float], float]]:
        """Rewards, scores and margin of each group, as Python numbers."""
        return [
            (self.rewards[self.group_index == g].tolist(), self.scores[self.group_index == g].tolist(), margin)
            for g, margin in enumerate(self.margins.tolist())
        ]


@pytest.fixture
def ragged() -> Ragged:
    generator = torch.Generator().manual_seed(0)
    n = sum(SIZES)
    scores = torch.randint(0, 4, (n,), generator=generator).float()
    scores[-SIZES[-1] :] = 1.0
    return Ragged(
        rewards=torch.randn(n, generator=generator, dtype=torch.double),
        scores=scores,
        group_index=torch.repeat_interleave(torch.arange(len(SIZES)), torch.tensor(SIZES)),
        margins=torch.rand(len(SIZES), generator=generator, dtype=torch.double),
    )


def softplus(x: float) -> float:
    return math.log1p(math.exp(x))


def one_group(loss: RewardLoss, rewards: list[float], scores: list[float], margin: float = 0.0) -> Tensor:
    index = torch.zeros(len(rewards), dtype=torch.long)
    return loss(torch.tensor(rewards), torch.tensor(scores), index, torch.tensor([margin]))


def k_wise_by_loop(rewards: list[float], scores: list[float], margin: float) -> list[float]:
    values = []
    for i, j in itertools.combinations(range(len(rewards)), 2):
        if scores[i] != scores[j]:
            winner, loser = (i, j) if scores[i] > scores[j] else (j, i)
            values.append(softplus(-(rewards[winner] - rewards[loser] - margin)))
    return [sum(values) / math.comb(len(rewards), 2)] if values else []


def plackett_luce_by_loop(rewards: list[float], scores: list[float]) -> list[float]:
    total = 0.0
    for r, s in zip(rewards, scores, strict=True):
        worse = [math.exp(other) for other, score in zip(rewards, scores, strict=True) if score < s]
        total -= math.log(math.exp(r) / (math.exp(r) + sum(worse)))
    return [total] if len(set(scores)) > 1 else []


@pytest.mark.parametrize("loss", [BradleyTerry(), KWise(), PlackettLuce()], ids=repr)
def test_a_pair_by_hand(loss: RewardLoss) -> None:
    for rewards, expected in [([2.0, 1.5], softplus(-0.5)), ([1.5, 2.0], softplus(0.5)), ([1.0, 1.0], math.log(2))]:
        torch.testing.assert_close(one_group(loss, rewards, [1.0, 0.0]), torch.tensor([expected]))


def test_regression_by_hand() -> None:
    value = one_group(Regression(), [2.0, 1.5, 0.0], [0.5, 0.5, 1.0])  # ties count: 2.25, 1 and 1
    torch.testing.assert_close(value, torch.tensor([4.25 / 3]))


@pytest.mark.parametrize("loss", [BradleyTerry(), KWise()], ids=repr)
def test_a_margin_is_what_the_better_response_must_win_by(loss: RewardLoss) -> None:
    value = one_group(loss, [2.0, 1.5], [1.0, 0.0], margin=0.5)
    torch.testing.assert_close(value, torch.tensor([math.log(2)]))


def test_three_responses_by_hand() -> None:
    rewards, scores = [3.0, 1.0, 2.0], [2.0, 1.0, 0.0]  # the second and third are the wrong way round
    pairs = softplus(-2.0) + softplus(-1.0) + softplus(1.0)
    torch.testing.assert_close(one_group(KWise(), rewards, scores), torch.tensor([pairs / 3]))
    ranking = math.log((math.e**3 + math.e + math.e**2) / math.e**3) + math.log((math.e + math.e**2) / math.e)
    torch.testing.assert_close(one_group(PlackettLuce(), rewards, scores), torch.tensor([ranking]))


def test_ties_are_dropped_and_the_weight_counts_all_responses() -> None:
    rewards, scores = [3.0, 1.0, 2.0], [1.0, 0.0, 0.0]
    pairs = softplus(-2.0) + softplus(-1.0)
    torch.testing.assert_close(one_group(KWise(), rewards, scores), torch.tensor([pairs / 3]))
    first = math.log((math.e**3 + math.e + math.e**2) / math.e**3)
    torch.testing.assert_close(one_group(PlackettLuce(), rewards, scores), torch.tensor([first]))


@pytest.mark.parametrize("loss", [BradleyTerry(), KWise(), PlackettLuce()], ids=repr)
def test_a_fully_tied_group_gives_no_value(loss: RewardLoss) -> None:
    assert one_group(loss, [3.0, 1.0], [1.0, 1.0]).shape == (0,)


def test_k_wise_on_ragged_groups_equals_the_loop(ragged: Ragged) -> None:
    expected = [value for group in ragged.groups() for value in k_wise_by_loop(*group)]
    values = KWise()(ragged.rewards, ragged.scores, ragged.group_index, ragged.margins)
    assert len(values) == len(SIZES) - 2  # the group of one and the tied one have no pair
    torch.testing.assert_close(values, torch.tensor(expected, dtype=torch.double))


def test_plackett_luce_on_ragged_groups_equals_the_loop(ragged: Ragged) -> None:
    expected = [value for rewards, scores, _ in ragged.groups() for value in plackett_luce_by_loop(rewards, scores)]
    values = PlackettLuce()(ragged.rewards, ragged.scores, ragged.group_index, torch.zeros_like(ragged.margins))
    torch.testing.assert_close(values, torch.tensor(expected, dtype=torch.double))


def test_regression_on_ragged_groups_equals_the_loop(ragged: Ragged) -> None:
    expected = [
        sum((r - s) ** 2 for r, s in zip(rewards, scores, strict=True)) / len(rewards)
        for rewards, scores, _ in ragged.groups()
    ]
    scores = ragged.scores.double()
    values = Regression()(ragged.rewards, scores, ragged.group_index, torch.zeros_like(ragged.margins))
    torch.testing.assert_close(values, torch.tensor(expected, dtype=torch.double))


def test_at_two_responses_all_comparisons_are_bradley_terry() -> None:
    rewards = torch.tensor([0.3, -1.2, 2.0, 2.5, 0.0, -0.1])
    scores = torch.tensor([1.0, 0.0, 0.0, 1.0, 7.0, -7.0])
    index, margins = torch.tensor([0, 0, 1, 1, 2, 2]), torch.zeros(3)
    expected = torch.tensor([softplus(-1.5), softplus(-0.5), softplus(-0.1)])
    for loss in (BradleyTerry(), KWise(), PlackettLuce()):
        torch.testing.assert_close(loss(rewards, scores, index, margins), expected)


@pytest.mark.parametrize("loss", [KWise(), PlackettLuce(), Regression()], ids=repr)
def test_the_order_of_the_responses_does_not_matter(loss: RewardLoss, ragged: Ragged) -> None:
    within = torch.cat([torch.randperm(k) + sum(SIZES[:g]) for g, k in enumerate(SIZES)])
    margins, scores = torch.zeros_like(ragged.margins), ragged.scores.double()
    values = loss(ragged.rewards, scores, ragged.group_index, margins)
    moved = loss(ragged.rewards[within], scores[within], ragged.group_index, margins)
    torch.testing.assert_close(moved, values)


@pytest.mark.parametrize("loss", [KWise(), PlackettLuce()], ids=repr)
def test_only_differences_of_rewards_matter(loss: RewardLoss, ragged: Ragged) -> None:
    zeros = torch.zeros(len(SIZES))
    near = loss(ragged.rewards.float(), ragged.scores, ragged.group_index, zeros)
    shifts = torch.tensor([8.0, -16.0, 0.0, 32.0, -4.0, 2.0])[ragged.group_index]
    far = loss(ragged.rewards.float() + shifts, ragged.scores, ragged.group_index, zeros)
    torch.testing.assert_close(far, near, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("loss", [BradleyTerry(), KWise(), PlackettLuce()], ids=repr)
def test_the_better_response_is_pushed_up(loss: RewardLoss) -> None:
    rewards = torch.zeros(2, requires_grad=True)
    value = loss(rewards, torch.tensor([0.0, 1.0]), torch.tensor([0, 0]), torch.zeros(1))
    (gradient,) = torch.autograd.grad(value.sum(), rewards)
    torch.testing.assert_close(gradient, torch.tensor([0.5, -0.5]))


@pytest.mark.parametrize("loss", [KWise(), PlackettLuce(), Regression()], ids=repr)
def test_gradients_agree_with_differences(loss: RewardLoss, ragged: Ragged) -> None:
    margins, scores = torch.zeros_like(ragged.margins), ragged.scores.double()

    def of_rewards(rewards: Tensor) -> Tensor:
        return loss(rewards, scores, ragged.group_index, margins)

    assert torch.autograd.gradcheck(of_rewards, ragged.rewards.requires_grad_())


@pytest.mark.parametrize("loss", [BradleyTerry(), KWise(), PlackettLuce(), Regression()], ids=repr)
@pytest.mark.parametrize("gap", [-1e4, 1e4])
def test_extreme_rewards_stay_finite(loss: RewardLoss, gap: float) -> None:
    rewards = torch.tensor([gap, -gap], requires_grad=True)
    value = loss(rewards, torch.tensor([1.0, 0.0]), torch.tensor([0, 0]), torch.zeros(1))
    (gradient,) = torch.autograd.grad(value.sum(), rewards)
    assert value.isfinite().all()
    assert gradient.isfinite().all()
    if loss != Regression():
        torch.testing.assert_close(value, torch.tensor([0.0 if gap > 0 else 2e4]))


@pytest.mark.parametrize("loss", [BradleyTerry(), KWise(), PlackettLuce(), Regression()], ids=repr)
def test_no_groups_give_no_values(loss: RewardLoss) -> None:
    empty = torch.zeros(0)
    assert loss(empty, empty, torch.zeros(0, dtype=torch.long), empty).shape == (0,)


def test_bradley_terry_refuses_groups_that_are_no_pairs() -> None:
    with pytest.raises(UserError, match="one prompt has 3"):
        one_group(BradleyTerry(), [1.0, 2.0, 3.0], [1.0, 2.0, 3.0])


@pytest.mark.parametrize("loss", [PlackettLuce(), Regression()], ids=repr)
def test_a_margin_without_effect_is_refused(loss: RewardLoss) -> None:
    with pytest.raises(UserError, match=f"{type(loss).__name__} has no margin"):
        one_group(loss, [2.0, 1.0], [1.0, 0.0], margin=0.5)


def test_a_loss_of_ones_own_is_one_frozen_dataclass() -> None:
    @dataclass(frozen=True)
    class Spread(RewardLoss):
        scale: float = 2.0

        def __call__(self, rewards: Tensor, scores: Tensor, group_index: Tensor, margins: Tensor) -> Tensor:
            return self.scale * rewards.new_zeros(len(margins)).index_add(0, group_index, rewards.square())

    torch.testing.assert_close(one_group(Spread(), [1.0, 2.0], [1.0, 0.0]), torch.tensor([10.0]))
    with pytest.raises(TypeError, match="abstract"):
        RewardLoss()  # type: ignore[abstract]


def test_a_critique_is_the_cross_entropy_of_labels_by_hand() -> None:
    # Group 0: -ln sigmoid(ln 3) = -ln 3/4. Group 1: the mean of -ln(1 - sigmoid(ln 3)) = -ln 1/4 and -ln sigmoid(0) = ln 2.
    rewards = torch.tensor([math.log(3), math.log(3), 0.0], requires_grad=True)
    losses = BinaryCritique()(rewards, torch.tensor([1.0, 0.0, 1.0]), torch.tensor([0, 1, 1]), torch.zeros(2))
    torch.testing.assert_close(losses, torch.tensor([0.287682, 1.039721]))
    (gradient,) = torch.autograd.grad(losses.sum(), rewards)
    # sigmoid(r) - label, divided by K.
    torch.testing.assert_close(gradient, torch.tensor([-0.25, 0.375, -0.25]))


def test_a_critique_stays_finite_and_has_no_margin() -> None:
    rewards = torch.tensor([-1e4, 1e4], requires_grad=True)
    index = torch.tensor([0, 1])
    losses = BinaryCritique()(rewards, torch.tensor([1.0, 1.0]), index, torch.zeros(2))
    torch.testing.assert_close(losses, torch.tensor([1e4, 0.0]))
    assert torch.autograd.grad(losses.sum(), rewards)[0].isfinite().all()
    with pytest.raises(UserError, match="BinaryCritique has no margin"):
        BinaryCritique()(rewards, torch.tensor([1.0, 1.0]), index, torch.tensor([0.0, 0.5]))
    empty = torch.zeros(0)
    assert BinaryCritique()(empty, empty, torch.zeros(0, dtype=torch.long), empty).shape == (0,)
