import os
import socket
import statistics

import pytest
import torch
import torch.multiprocessing as mp
from torch import tensor

from lit_align.errors import UserError
from lit_align.losses.advantages import GAE, GRPO, RLOO, gae, token_rewards, whiten

LENGTHS = [3, 1, 5, 2]
RESPONSE_INDEX = torch.repeat_interleave(torch.arange(4), tensor(LENGTHS))
GROUP_INDEX = tensor([0, 0, 1, 1])


def split(values):
    return [part.tolist() for part in values.split(LENGTHS)]


def rollout(seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(11, generator=generator), torch.randn(11, generator=generator)


@pytest.mark.parametrize(("gamma", "lam"), [(1.0, 0.95), (0.9, 0.7), (1.0, 1.0), (0.8, 0.0), (0.0, 0.5)])
def test_gae_equals_the_double_sum(gamma, lam):
    rewards, values = rollout()
    expected = []
    for r, before in zip(split(rewards), split(values), strict=True):
        v = [*before, 0.0]
        for t in range(len(r)):
            deltas = [(i - t, r[i] + gamma * v[i + 1] - v[i]) for i in range(t, len(r))]
            expected.append(sum((gamma * lam) ** i * delta for i, delta in deltas))
    advantages, returns = gae(rewards, values, RESPONSE_INDEX, gamma, lam)
    assert advantages.tolist() == pytest.approx(expected, abs=1e-5)
    assert returns.tolist() == pytest.approx([a + v for a, v in zip(expected, values.tolist(), strict=True)], abs=1e-5)


def test_gae_by_hand():
    # gamma 1, lam .5: deltas 0 + 2 - 1 = 1 and 3 - 2 = 1; A = 1 + .5, 1.
    advantages, returns = gae(tensor([0.0, 3.0]), tensor([1.0, 2.0]), tensor([0, 0]), 1.0, 0.5)
    assert advantages.tolist() == [1.5, 1.0]
    assert returns.tolist() == [2.5, 3.0]


def test_undiscounted_gae_with_lambda_one_is_reward_to_go_minus_value():
    rewards, values = rollout()
    to_go = [sum(r[t:]) for r in split(rewards) for t in range(len(r))]
    advantages, returns = gae(rewards, values, RESPONSE_INDEX, 1.0, 1.0)
    assert returns.tolist() == pytest.approx(to_go, abs=1e-5)
    assert (advantages + values).tolist() == pytest.approx(to_go, abs=1e-5)


def test_responses_do_not_look_into_each_other():
    rewards, values = rollout()
    before, _ = gae(rewards, values, RESPONSE_INDEX, 1.0, 0.95)
    rewards[4:9] += 100
    values[4:9] -= 100
    after, _ = gae(rewards, values, RESPONSE_INDEX, 1.0, 0.95)
    unchanged = RESPONSE_INDEX != 2
    torch.testing.assert_close(before[unchanged], after[unchanged], atol=0, rtol=0)


def test_nothing_carries_a_gradient():
    rewards, values = rollout()
    out = GAE()(rewards.requires_grad_(), values.requires_grad_(), RESPONSE_INDEX, GROUP_INDEX)
    assert not out.advantages.requires_grad
    assert not out.returns.requires_grad
    assert not RLOO()(rewards, None, RESPONSE_INDEX, GROUP_INDEX).advantages.requires_grad


def test_no_tokens_have_no_advantages():
    empty = torch.zeros(0)
    advantages, returns = gae(empty, empty, torch.zeros(0, dtype=torch.long), 1.0, 0.95)
    assert len(advantages) == len(returns) == 0
    assert len(whiten(empty, mean="remove")) == 0


def test_token_rewards_put_the_score_on_the_last_token():
    kl = torch.arange(1.0, 12.0)
    rewards = token_rewards(tensor([10.0, 20.0, 30.0, 40.0]), kl, 0.1, RESPONSE_INDEX)
    expected = [-0.1, -0.2, 9.7, 19.6, -0.5, -0.6, -0.7, -0.8, 29.1, -1.0, 38.9]
    assert rewards.tolist() == pytest.approx(expected, abs=1e-5)


def test_whitening_by_hand():
    # Mean 3, variance (4 + 1 + 1 + 4) / 4 = 2.5.
    values, root = tensor([1.0, 2.0, 4.0, 5.0]), 2.5**0.5
    assert whiten(values, mean="remove").tolist() == pytest.approx([-2 / root, -1 / root, 1 / root, 2 / root], abs=1e-5)
    assert whiten(values, mean="keep").tolist() == pytest.approx(
        [3 - 2 / root, 3 - 1 / root, 3 + 1 / root, 3 + 2 / root], abs=1e-5
    )


def test_whitening_holds_under_a_large_mean_and_without_variance():
    values = tensor([1000.0, 1000.25, 1000.5, 1000.75])
    expected = [(x - 0.375) / statistics.pstdev([0, 0.25, 0.5, 0.75]) for x in (0, 0.25, 0.5, 0.75)]
    assert whiten(values, mean="remove").tolist() == pytest.approx(expected, abs=1e-4)
    assert whiten(torch.full((5,), 7.0), mean="remove").tolist() == [0] * 5
    assert whiten(tensor([7.0]), mean="keep").tolist() == [7]


def test_which_mean_has_to_be_said():
    with pytest.raises(TypeError):
        whiten(torch.ones(2))
    with pytest.raises(ValueError, match='"keep" or "remove"'):
        whiten(torch.ones(2), mean=True)


def test_gae_whitens_over_tokens_and_leaves_returns():
    rewards, values = rollout()
    plain = GAE(whiten=False)(rewards, values, RESPONSE_INDEX, GROUP_INDEX)
    white = GAE()(rewards, values, RESPONSE_INDEX, GROUP_INDEX)
    raw = plain.advantages.tolist()
    expected = [(a - statistics.fmean(raw)) / statistics.pstdev(raw) for a in raw]
    assert white.advantages.tolist() == pytest.approx(expected, abs=1e-5)
    torch.testing.assert_close(white.returns, plain.returns, atol=0, rtol=0)


def test_gae_may_scale_rewards_and_keeps_their_mean():
    rewards, values = rollout()
    r = rewards.tolist()
    scaled = [(x - statistics.fmean(r)) / statistics.pstdev(r) + statistics.fmean(r) for x in r]
    expected = GAE(whiten=False)(tensor(scaled), values, RESPONSE_INDEX, GROUP_INDEX)
    actual = GAE(whiten=False, whiten_rewards=True)(rewards, values, RESPONSE_INDEX, GROUP_INDEX)
    torch.testing.assert_close(actual.advantages, expected.advantages, atol=1e-5, rtol=0)


RAGGED_GROUPS = tensor([0, 0, 0, 1, 1])
RAGGED_RESPONSES = tensor([0, 0, 1, 2, 2, 2, 3, 4, 4])
# Summed: 6, 3, 9 | 5, 1.
RAGGED_REWARDS = tensor([2.0, 4.0, 3.0, 1.0, 1.0, 7.0, 5.0, -2.0, 3.0])


def test_rloo_by_hand():
    # 6 - 6, 3 - 7.5, 9 - 4.5 | 5 - 1, 1 - 5.
    out = RLOO()(RAGGED_REWARDS, None, RAGGED_RESPONSES, RAGGED_GROUPS)
    assert out.advantages.tolist() == [0, 0, -4.5, 4.5, 4.5, 4.5, 4, -4, -4]
    assert out.returns is None


def test_grpo_by_hand():
    # Means 6 and 3, sample deviations 3 and 2 sqrt 2.
    out = GRPO()(RAGGED_REWARDS, None, RAGGED_RESPONSES, RAGGED_GROUPS)
    a, b = 3 / 3.0001, 2 / (8**0.5 + 1e-4)
    assert out.advantages.tolist() == pytest.approx([0, 0, -a, a, a, a, b, -b, -b], abs=1e-5)
    unscaled = GRPO(scale_by_std=False)(RAGGED_REWARDS, None, RAGGED_RESPONSES, RAGGED_GROUPS)
    assert unscaled.advantages.tolist() == [0, 0, -3, 3, 3, 3, 2, -2, -2]


def test_equal_scores_teach_nothing():
    rewards = tensor([0.1, 0.1, 0.1, 0.1])
    for estimator in (RLOO(), GRPO()):
        out = estimator(rewards, None, torch.arange(4), tensor([0, 0, 1, 1]))
        assert out.advantages.tolist() == pytest.approx([0] * 4, abs=1e-6)


@pytest.mark.parametrize("estimator", [RLOO(), GRPO()])
def test_what_compares_responses_refuses_one_response_and_a_critic(estimator):
    rewards, index = torch.ones(3), torch.arange(3)
    with pytest.raises(UserError, match="at least 2 of each"):
        estimator(rewards, None, index, tensor([0, 0, 1]))
    with pytest.raises(UserError, match="makes no use of a critic"):
        estimator(rewards, rewards, index, tensor([0, 0, 0]))


def test_gae_wants_a_critic_and_settings_in_range():
    with pytest.raises(UserError, match="needs a critic"):
        GAE()(torch.ones(1), None, tensor([0]), tensor([0]))
    with pytest.raises(UserError, match="lam must be between 0 and 1"):
        GAE(lam=1.1)
    with pytest.raises(UserError, match="gamma must be between 0 and 1"):
        GAE(gamma=-0.1)


def test_what_a_loop_has_to_know_of_an_estimator():
    assert [(e.needs_critic, e.kl_in_loss) for e in (GAE, RLOO, GRPO)] == [(True, False), (False, False), (False, True)]


def test_whitening_takes_any_sum_over_ranks():
    parts = [tensor([1.0, 2.0]), tensor([4.0, 5.0])]
    # The other rank's count and sum, then its squared deviations from the common mean of 3.
    others = iter([tensor([2.0, 9.0]), tensor(5.0)])
    actual = whiten(parts[0], mean="remove", reduce=lambda value: value + next(others))
    torch.testing.assert_close(actual, whiten(torch.cat(parts), mean="remove")[:2], atol=1e-6, rtol=0)


def _whitening_rank(rank: int, port: int, pieces: list[torch.Tensor], expected: list[torch.Tensor]) -> None:
    torch.set_num_threads(1)
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "RANK": str(rank), "WORLD_SIZE": "2"}
    torch.distributed.init_process_group("gloo")
    for n in range(0, len(pieces), 2):
        actual = whiten(pieces[n + rank], mean="remove")
        torch.testing.assert_close(actual, expected[n + rank], atol=1e-6, rtol=0)
    torch.distributed.destroy_process_group()


def test_two_ranks_whiten_as_one():
    values = 5 + 3 * torch.randn(40, generator=torch.Generator().manual_seed(0))
    pieces = [values[:13], values[13:], values, values[:0]]
    white = whiten(values, mean="remove")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    mp.spawn(_whitening_rank, args=(port, pieces, [white[:13], white[13:], white, white[:0]]), nprocs=2)
