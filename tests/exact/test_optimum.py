import math
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from lit_align.data.mini_instruct import demonstrator_logps, gold_scores
from lit_align.exact import BETAS, Frontier, expected_reward, kl_divergence, optimal_policy
from lit_align.losses import DPO, PairLogps

X, S = 3, 39


@pytest.fixture
def ref_logps() -> Tensor:
    return (2 * torch.randn(X, S, generator=torch.Generator().manual_seed(1), dtype=torch.float64)).log_softmax(1)


@pytest.fixture
def rewards() -> Tensor:
    values = torch.randn(X, S, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    return (4 * values).round() / 4  # with ties


def test_optimal_policy_by_hand() -> None:
    # ref (1/2, 1/4, 1/4), r / beta = (0, log 2, log 4): ref * exp = (1/2, 1/2, 1), Z = 2.
    ref = torch.tensor([[0.5, 0.25, 0.25]], dtype=torch.float64).log()
    reward = 0.5 * torch.tensor([[1.0, 2.0, 4.0]], dtype=torch.float64).log()
    expected = torch.tensor([[0.25, 0.25, 0.5]], dtype=torch.float64)
    torch.testing.assert_close(optimal_policy(ref, reward, beta=0.5).exp(), expected, atol=1e-12, rtol=0)


@pytest.mark.parametrize("beta", [0.1, 1.0, 5.0])
def test_optimal_policy_is_the_fixed_point(ref_logps: Tensor, rewards: Tensor, beta: float) -> None:
    optimal = optimal_policy(ref_logps, rewards, beta)
    implied = rewards - beta * (optimal - ref_logps)  # beta log Z, the same for all responses of a prompt
    for x in range(X):
        z = sum(math.exp(ref_logps[x, y] + rewards[x, y] / beta) for y in range(S))
        torch.testing.assert_close(implied[x], torch.full_like(implied[x], beta * math.log(z)), atol=1e-9, rtol=0)


def test_kl_and_reward_by_brute_force(ref_logps: Tensor, rewards: Tensor) -> None:
    logps = ref_logps.flip(1)
    for x in range(X):
        kl = sum(math.exp(p) * (p - q) for p, q in zip(logps[x].tolist(), ref_logps[x].tolist(), strict=True))
        reward = sum(math.exp(p) * r for p, r in zip(logps[x].tolist(), rewards[x].tolist(), strict=True))
        assert kl_divergence(logps, ref_logps)[x].item() == pytest.approx(kl, abs=1e-12)
        assert expected_reward(logps, rewards)[x].item() == pytest.approx(reward, abs=1e-12)


def test_kl_of_impossible_responses() -> None:
    half, sure = torch.tensor([[0.5, 0.5]]).log(), torch.tensor([[1.0, 0.0]]).log()
    assert kl_divergence(sure, half).item() == pytest.approx(math.log(2))
    assert kl_divergence(half, sure).item() == math.inf


def test_frontier_points_are_the_optimal_policies(ref_logps: Tensor, rewards: Tensor) -> None:
    for beta, kl, reward in Frontier(ref_logps, rewards).points([0.03, 0.4, 7.0]):
        optimal = optimal_policy(ref_logps, rewards, beta)
        assert kl == pytest.approx(kl_divergence(optimal, ref_logps).mean().item(), abs=1e-10)
        assert reward == pytest.approx(expected_reward(optimal, rewards).mean().item(), abs=1e-10)


@pytest.mark.parametrize("beta", [0.15, 0.5, 2.0])
def test_frontier_slope_is_beta(beta: float) -> None:
    frontier = Frontier(demonstrator_logps(), gold_scores())
    left, right = frontier.point(beta * 1.001), frontier.point(beta / 1.001)
    assert (right.reward - left.reward) / (right.kl - left.kl) == pytest.approx(beta, rel=1e-3)


def test_no_policy_is_beyond_the_frontier(ref_logps: Tensor, rewards: Tensor) -> None:
    frontier = Frontier(ref_logps, rewards)
    generator = torch.Generator().manual_seed(3)
    for scale in (0.05, 0.3, 1.0) * 20:
        noise = scale * torch.randn(X, S, generator=generator, dtype=torch.float64)
        logps = (ref_logps + rewards + noise).log_softmax(1)
        kl = kl_divergence(logps, ref_logps).mean().item()
        reward = expected_reward(logps, rewards).mean().item()
        assert reward < frontier.best_reward(kl)
        assert frontier.efficiency(reward, kl) < 1


def test_frontier_is_monotone_and_concave() -> None:
    points = Frontier(demonstrator_logps(), gold_scores()).points(BETAS)
    slopes = [(b.reward - a.reward) / (b.kl - a.kl) for a, b in pairwise(points)]
    assert all(a.beta > b.beta and a.kl < b.kl and a.reward < b.reward for a, b in pairwise(points))
    assert all(a > b for a, b in pairwise(slopes))


def test_beta_at_a_kl() -> None:
    frontier = Frontier(demonstrator_logps(), gold_scores())
    for kl in (1e-5, 0.05, 1.0, 4.0, frontier.max_kl - 1e-3):
        assert frontier.point(frontier.beta_at(kl)).kl == pytest.approx(kl, rel=1e-9)
    for kl in (0.0, frontier.max_kl, 100.0):
        with pytest.raises(ValueError, match="No beta gives a KL"):
            frontier.beta_at(kl)


def test_ends_of_the_frontier() -> None:
    ref = torch.tensor([[0.5, 0.25, 0.25, 0.0], [0.1, 0.2, 0.7, 0.0]], dtype=torch.float64).log()
    reward = torch.tensor([[1.0, 3.0, 3.0, 9.0], [2.0, 0.0, 1.0, 9.0]], dtype=torch.float64)
    frontier = Frontier(ref, reward)
    assert frontier.reference_reward == pytest.approx((2.0 + 0.9) / 2)
    assert frontier.max_reward == pytest.approx((3.0 + 2.0) / 2)  # what the reference cannot say is out of reach
    assert frontier.max_kl == pytest.approx((math.log(2) + math.log(10)) / 2)
    assert frontier.best_reward(0.0) == frontier.reference_reward
    assert frontier.best_reward(50.0) == frontier.max_reward


def test_efficiency(ref_logps: Tensor, rewards: Tensor) -> None:
    frontier = Frontier(ref_logps, rewards)
    _, kl, reward = frontier.point(0.4)
    assert frontier.efficiency(reward, kl) == pytest.approx(1.0, abs=1e-9)
    assert frontier.efficiency(frontier.reference_reward, kl) == 0
    halfway = (reward + frontier.reference_reward) / 2
    assert frontier.efficiency(halfway, kl) == pytest.approx(0.5, abs=1e-9)
    with pytest.raises(ValueError, match="nothing can be gained"):
        frontier.efficiency(reward, 0.0)


def test_beta_must_be_positive(ref_logps: Tensor, rewards: Tensor) -> None:
    with pytest.raises(ValueError, match="beta must be positive, got 0"):
        optimal_policy(ref_logps, rewards, 0)
    with pytest.raises(ValueError, match="beta must be positive"):
        Frontier(ref_logps, rewards).point(-1.0)


def test_documented_frontier_of_mini_instruct() -> None:
    """KL -> gold as the documentation has them."""
    frontier = Frontier(demonstrator_logps(), gold_scores())
    documented = {1.0: (0.72, 1.30), 0.5: (2.04, 2.21), 0.3: (3.62, 2.82), 0.1: (6.72, 3.44)}
    for beta, (kl, gold) in documented.items():
        assert frontier.point(beta)[1:] == pytest.approx((kl, gold), abs=0.005)


@pytest.mark.parametrize("beta", [0.3, 1.0])
def test_tabular_dpo_reaches_the_optimal_policy(ref_logps: Tensor, rewards: Tensor, beta: float) -> None:
    """DPO on every pair, weighted by its Bradley-Terry probability, has pi* as its only minimum."""
    first, second = (index.flatten() for index in torch.meshgrid(torch.arange(S), torch.arange(S), indexing="ij"))
    weight = torch.sigmoid(rewards[:, first] - rewards[:, second]).flatten()
    ones = torch.ones_like(weight)
    logits = ref_logps.clone().requires_grad_()
    optimizer = torch.optim.LBFGS([logits], max_iter=500, tolerance_grad=1e-10, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        logps = logits.log_softmax(1)
        pairs = PairLogps(
            chosen=logps[:, first].flatten(),
            rejected=logps[:, second].flatten(),
            ref_chosen=ref_logps[:, first].flatten(),
            ref_rejected=ref_logps[:, second].flatten(),
            chosen_length=ones,
            rejected_length=ones,
        )
        loss = (weight * DPO(beta=beta)(pairs)).mean()
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    optimizer.step(closure)  # type: ignore[no-untyped-call]
    reached = logits.detach().softmax(1)
    torch.testing.assert_close(reached, optimal_policy(ref_logps, rewards, beta).exp(), atol=1e-4, rtol=1e-3)
