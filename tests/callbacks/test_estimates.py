"""Standard errors and intervals against exact values: on mini_instruct every mean and every variance can be summed up."""

from __future__ import annotations

import math
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from callbacks.estimates import Z, length_controlled, over_prompts, win_rate
from callbacks.token_kl import ESTIMATORS
from lit_align import exact
from lit_align.data.mini_instruct import MAX_WORDS, WORDS, demonstrator_logps, gold_scores
from lit_align.errors import UserError

W = len(WORDS)
SEEDS = 100


def test_the_error_is_within_prompts_by_hand():
    mean, error = over_prompts(torch.tensor([[1.0, 3.0], [10.0, 14.0]]))
    assert mean == 7.0
    assert error == pytest.approx(math.sqrt((2 / 2 + 8 / 2) / 4))  # variances 2 and 8, two responses, two prompts


def test_with_one_response_a_prompt_it_is_over_prompts():
    mean, error = over_prompts(torch.tensor([[1.0], [2.0], [6.0]]))
    assert mean == 3.0
    assert error == pytest.approx(math.sqrt(7 / 3))
    with pytest.raises(UserError, match="no standard error"):
        over_prompts(torch.ones(1, 1))


def test_wilson_by_hand():
    rate, low, high = win_rate(torch.tensor([[1.0], [1.0], [1.0], [0.0]]))
    assert rate == 0.75
    # Over prompts the variance of the mean is .25 / 4, so the comparisons are worth n = 3 / 16 / (1 / 16) = 3.
    n, z = 3, 1.959964
    middle, half = 0.75 + z**2 / (2 * n), z * math.sqrt(0.75 * 0.25 / n + z**2 / (4 * n**2))
    assert low == pytest.approx((middle - half) / (1 + z**2 / n), abs=1e-6)
    assert high == pytest.approx((middle + half) / (1 + z**2 / n), abs=1e-6)


@pytest.mark.parametrize("score", [0.0, 0.5, 1.0])
def test_wilson_where_nothing_varies(score):
    rate, low, high = win_rate(torch.full((4, 5), score))
    assert rate == score
    assert 0 <= low <= rate <= high <= 1
    # The classical interval of 0 out of 20 is (0, z^2 / (20 + z^2)).
    if score == 0:
        assert high == pytest.approx(Z**2 / (20 + Z**2), abs=1e-6)


def test_length_control_takes_away_what_length_explains():
    generator = torch.Generator().manual_seed(0)
    differences = 5 + 10 * torch.randn(20_000, generator=generator)  # the first answer is longer as a rule
    scale = differences.square().mean().sqrt()
    wins = (torch.rand(20_000, generator=generator) < torch.sigmoid(-0.4 + 1.5 * differences / scale)).float()
    assert float(wins.mean()) > 0.5
    assert length_controlled(wins, differences) == pytest.approx(1 / (1 + math.exp(0.4)), abs=0.01)


def test_length_control_without_lengths_is_the_win_rate():
    assert length_controlled(torch.tensor([1.0, 1.0, 0.5, 0.0]), torch.zeros(4)) == pytest.approx(0.625)


def test_length_control_stays_finite_where_the_longer_answer_always_wins():
    rate = length_controlled(torch.tensor([1.0, 1.0, 0.0, 0.0]), torch.tensor([3.0, 1.0, -1.0, -3.0]))
    assert rate == pytest.approx(0.5, abs=1e-6)


class Setting(NamedTuple):
    """A policy and its reference; log-probabilities of every response, `(8, S)`."""

    logps: Tensor
    ref_logps: Tensor


def setting(beta: float) -> Setting:
    ref_logps = demonstrator_logps()
    return Setting(exact.optimal_policy(ref_logps, gold_scores(), beta), ref_logps)


def masses(logps: Tensor) -> tuple[list[Tensor], list[Tensor]]:
    """Probability of ending after each prefix of 1, 2, ... words, and of beginning with each prefix of 0, 1, ... words."""
    ends = list(torch.split(logps.exp(), [W**j for j in range(1, MAX_WORDS + 1)], dim=1))
    begins = [ends[-1]]
    for end in reversed(ends[:-1]):
        begins.append(end + begins[-1].unflatten(1, (-1, W)).sum(-1))
    begins.append(begins[-1].sum(1, keepdim=True))
    return ends, begins[::-1]


def next_token(ends: list[Tensor], begins: list[Tensor], words: int) -> Tensor:
    """Distribution after each prefix of so many words, EOS first: `(8, W ** words, 1 + W)`."""
    mass = begins[words][..., None]
    end = ends[words - 1][..., None] if words else torch.zeros_like(mass)
    more = begins[words + 1].unflatten(1, (-1, W)) if words < MAX_WORDS else mass[..., :0]
    return torch.cat([end, more], dim=-1) / mass


def estimate_tables(policies: Setting) -> Tensor:
    """What each KL estimator says of every response, `(3, 8, S)`: sums over its tokens, from the definitions."""
    policy, reference = masses(policies.logps), masses(policies.ref_logps)
    so_far, tables = torch.zeros(3, len(policies.logps), 1, dtype=torch.float64), []
    for words in range(MAX_WORDS + 1):
        p, q = next_token(*policy, words), next_token(*reference, words)
        log_ratio = torch.where(p > 0, p.log() - q.log(), 0.0)
        full = (p * log_ratio).sum(-1, keepdim=True).expand_as(p)
        values = torch.stack([log_ratio, torch.exp(-log_ratio) - 1 + log_ratio, full])
        if words:
            tables.append(so_far + values[..., 0])
        so_far = (so_far[..., None] + values[..., 1:]).flatten(2)
    return torch.cat(tables, dim=2)


def exact_moments(values: Tensor, probabilities: Tensor) -> tuple[float, Tensor]:
    """Mean over prompts, and the variance within each: `(8, S)` tables to a float and `(8,)`."""
    means = (probabilities * values).sum(1)
    return means.mean().item(), (probabilities * values.square()).sum(1) - means.square()


@pytest.mark.parametrize("beta", [1.0, 0.3])
def test_all_three_estimators_have_the_exact_mean(beta):
    policies = setting(beta)
    expected = exact.kl_divergence(policies.logps, policies.ref_logps).mean().item()
    for table in estimate_tables(policies):
        assert exact_moments(table, policies.logps.exp())[0] == pytest.approx(expected, abs=1e-8)


def test_the_full_estimator_has_the_least_variance_near_and_far():
    """The figures of docs/callbacks.md: standard deviation of one response's estimate, nats."""
    expected = {3.0: (0.434, 0.057, 0.030), 1.0: (1.099, 0.567, 0.183), 0.3: (1.885, 22.36, 0.530)}
    for beta, deviations in expected.items():
        policies = setting(beta)
        p = policies.logps.exp()
        found = [exact_moments(table, p)[1].mean().sqrt().item() for table in estimate_tables(policies)]
        assert found == pytest.approx(deviations, rel=5e-3)


def intervals(values: Tensor, probabilities: Tensor, k: int) -> tuple[int, float]:
    """How many of the seeds' intervals hold the exact mean, and their mean width over the one of the exact variance."""
    expected, variances = exact_moments(values, probabilities)
    theory = math.sqrt(variances.sum().item() / k) / len(variances)
    held, widths = 0, 0.0
    for seed in range(SEEDS):
        drawn = torch.multinomial(probabilities, k, replacement=True, generator=torch.Generator().manual_seed(seed))
        mean, error = over_prompts(values.gather(1, drawn))
        held += abs(mean - expected) <= Z * error
        widths += error
    return held, widths / SEEDS / theory


@pytest.mark.parametrize(
    ("estimator", "beta"), [("k1", 1.0), ("k3", 1.0), ("full", 1.0), ("k1", 0.3), ("full", 0.3), ("full", 3.0)]
)
def test_the_interval_of_the_kl_holds_the_exact_kl(estimator, beta):
    policies = setting(beta)
    values = estimate_tables(policies)[ESTIMATORS.index(estimator)]
    held, width = intervals(values, policies.logps.exp(), k=32)
    assert 90 <= held <= 99
    assert width <= 1.2


@pytest.mark.parametrize("beta", [1.0, 0.3])
def test_the_interval_of_the_reward_holds_the_expected_reward(beta):
    policies = setting(beta)
    held, width = intervals(gold_scores(), policies.logps.exp(), k=32)
    assert 90 <= held <= 99
    assert width <= 1.2


@pytest.mark.parametrize(("beta", "k"), [(3.0, 8), (1.0, 8), (0.3, 32)])
def test_the_interval_of_the_win_rate_holds_the_exact_one(beta, k):
    policies = setting(beta)
    gold = gold_scores()
    rates = exact.win_rate(policies.logps, policies.ref_logps, gold)
    # P(win) + P(tie) / 4 is the second moment of a score, and P(win) + P(tie) / 2 its mean.
    ties = torch.stack(
        [tie_rate(*row) for row in zip(policies.logps.exp(), policies.ref_logps.exp(), gold, strict=True)]
    )
    theory = math.sqrt((rates - ties / 4 - rates.square()).sum().item() / k) / len(rates)
    held, widths = 0, 0.0
    for seed in range(SEEDS):
        generator = torch.Generator().manual_seed(seed)
        ours, theirs = (
            gold.gather(1, torch.multinomial(logps.exp(), k, replacement=True, generator=generator))
            for logps in policies
        )
        _, low, high = win_rate(((ours - theirs).sign() + 1) / 2)
        held += low <= rates.mean().item() <= high
        widths += (high - low) / 2
    assert 90 <= held <= 99
    assert widths / SEEDS <= 1.2 * Z * theory


def tie_rate(p: Tensor, q: Tensor, gold: Tensor) -> Tensor:
    """Probability that two draws have the same gold: three `(S,)` tensors to a scalar."""
    values, level = torch.unique(gold, return_inverse=True)
    of_p, of_q = (torch.zeros(len(values), dtype=torch.float64).index_add(0, level, mass) for mass in (p, q))
    return (of_p * of_q).sum()
