"""Which pairs are compared: counted, drawn and brute-forced."""

from __future__ import annotations

from itertools import combinations

import pytest
import torch

from lit_align.errors import UserError
from lit_align.feedback.selection import (
    every_pair,
    most_disputed_pairs,
    select_pairs,
    thompson_pairs,
    uniform_pairs,
)

GROUPS = torch.tensor([0, 0, 0, 1, 2, 2, 2, 2])
ALL = [(0, 1), (0, 2), (1, 2), *combinations(range(4, 8), 2)]


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def as_set(pairs: torch.Tensor) -> set[frozenset[int]]:
    return {frozenset(pair) for pair in pairs.tolist()}


def test_every_pair() -> None:
    assert every_pair(GROUPS).tolist() == [list(pair) for pair in ALL]
    assert every_pair(torch.empty(0, dtype=torch.long)).shape == (0, 2)


def test_uniform_pairs_differ_and_are_equally_likely() -> None:
    assert as_set(uniform_pairs(GROUPS, 100, seeded())) == as_set(torch.tensor(ALL))
    counts = dict.fromkeys(map(frozenset, ALL), 0)
    for seed in range(900):
        drawn = uniform_pairs(GROUPS, 3, seeded(seed))
        assert len(as_set(drawn)) == 3
        for pair in as_set(drawn):
            counts[pair] += 1
    # Binomial(900, 1/3): standard deviation 14
    assert all(abs(count - 300) < 65 for count in counts.values())


def test_the_most_disputed_pairs_by_brute_force() -> None:
    rewards = torch.randn(5, 8, generator=seeded(1), dtype=torch.float64)
    variance = {(i, j): (rewards[:, i] - rewards[:, j]).var().item() for i, j in ALL}
    expected = sorted(ALL, key=lambda pair: -variance[pair])[:4]
    assert [tuple(pair) for pair in most_disputed_pairs(rewards, GROUPS, 4).tolist()] == expected
    # What all members shift by a constant is no dispute about differences.
    assert most_disputed_pairs(rewards + torch.arange(5)[:, None], GROUPS, 4).tolist() == [list(p) for p in expected]


def test_thompson_pairs_are_two_favourites() -> None:
    # Member 0 likes 1, then 0; member 1 likes 2, then 1.
    rewards = torch.tensor([[1.0, 2.0, 0.0], [0.0, 1.0, 2.0]])
    seen = {
        tuple(thompson_pairs(rewards, torch.zeros(3, dtype=torch.long), 1, seeded(s))[0].tolist()) for s in range(60)
    }
    assert seen == {(1, 0), (1, 2), (2, 1)}  # (2, 1) of members 1, 1 and of 1, 0


def test_thompson_visits_every_prompt_before_any_again_and_repeats_no_pair() -> None:
    rewards = torch.randn(3, 8, generator=seeded(2))
    for seed in range(20):
        chosen = thompson_pairs(rewards, GROUPS, 100, seeded(seed))
        assert sorted(map(sorted, chosen.tolist())) == sorted(map(list, ALL))
        visited = GROUPS[chosen[:, 0]].tolist()
        assert [set(visited[start : start + 2]) for start in (0, 2, 4)] == [{0, 2}] * 3
        assert set(visited[6:]) == {2}


def test_sure_members_only_compare_the_two_best() -> None:
    rewards = torch.tensor([[3.0, 1.0, 2.0, 0.0]]).repeat(4, 1)
    assert thompson_pairs(rewards, torch.zeros(4, dtype=torch.long), 1, seeded()).tolist() == [[0, 2]]


def test_by_name() -> None:
    rewards = torch.randn(3, 8, generator=seeded(3))
    assert torch.equal(select_pairs("uniform", None, GROUPS, 2, seeded()), uniform_pairs(GROUPS, 2, seeded()))
    disputed = most_disputed_pairs(rewards, GROUPS, 2)
    assert torch.equal(select_pairs("disagreement", rewards, GROUPS, 2, seeded()), disputed)
    thompson = thompson_pairs(rewards, GROUPS, 2, seeded())
    assert torch.equal(select_pairs("thompson", rewards, GROUPS, 2, seeded()), thompson)


def test_what_makes_no_sense_is_refused() -> None:
    with pytest.raises(UserError, match="budget must be at least 1 pair, got 0"):
        uniform_pairs(GROUPS, 0, seeded())
    with pytest.raises(UserError, match="name two or more"):
        select_pairs("thompson", None, GROUPS, 1, seeded())
    for rewards in (torch.zeros(1, 8), torch.zeros(2, 7), torch.zeros(8)):
        with pytest.raises(
            UserError, match="needs two rewards or more, each with a number for each of the 8 responses"
        ):
            most_disputed_pairs(rewards, GROUPS, 1)
