from __future__ import annotations

import math

import pytest
import torch

from callbacks.reward_distance import canonical, reward_distance
from lit_align.errors import UserError

GROUPS = torch.arange(40).repeat_interleave(8)


def rewards(seed: int) -> torch.Tensor:
    return torch.randn(320, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_what_preferences_cannot_tell_does_not_count():
    first = rewards(0)
    same = reward_distance(first, 3 * first + rewards(1)[GROUPS], GROUPS)  # another shift for each prompt
    assert same.epic == pytest.approx(0, abs=1e-6)
    assert same.scale_ratio == pytest.approx(1 / 3)
    assert reward_distance(first, -first, GROUPS).epic == pytest.approx(1)
    assert reward_distance(first, rewards(2), GROUPS).epic == pytest.approx(math.sqrt(0.5), abs=0.05)


def test_by_hand_with_groups_of_two_sizes():
    first = torch.tensor([1.0, 3.0, 0.0, 0.0, 3.0])
    second = torch.tensor([0.0, 2.0, 1.0, -1.0, 0.0])
    index = torch.tensor([0, 0, 1, 1, 1])
    assert canonical(first, index).tolist() == [-1, 1, -1, -1, 2]
    # c1 = (-1, 1, -1, -1, 2), c2 = (-1, 1, 1, -1, 0): products 1 + 1 - 1 + 1 + 0, squares 8 and 4.
    found = reward_distance(first, second, index)
    assert found.epic == pytest.approx(math.sqrt((1 - 2 / math.sqrt(32)) / 2))
    assert found.scale_ratio == pytest.approx(math.sqrt(2))
    normalised = canonical(first, index) / math.sqrt(8) - canonical(second, index) / 2
    assert normalised.norm().item() == pytest.approx(2 * found.epic)  # STARC


def test_the_interval_holds_the_distance_of_the_population():
    """c2 = c1 + noise of half its deviation, so Pearson is 1 / sqrt(1 + 1/4)."""
    expected = math.sqrt((1 - 1 / math.sqrt(1 + 0.5**2)) / 2)
    held = 0
    for seed in range(50):
        first = rewards(2 * seed)
        low, high = reward_distance(first, first + 0.5 * rewards(2 * seed + 1), GROUPS, seed=seed)[1:3]
        held += low <= expected <= high
    assert 44 <= held <= 50


def test_a_constant_reward_is_refused():
    with pytest.raises(UserError, match="the same reward"):
        reward_distance(rewards(0), torch.ones(320), GROUPS)
