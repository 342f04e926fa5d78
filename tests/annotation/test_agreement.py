"""Agreement and bias of judges, by hand."""

from __future__ import annotations

import math

import pytest
import torch

from lit_align.annotation.agreement import agreement, kappa, mean, position_bias, share, verdicts, with_scores


def test_verdicts_and_ties() -> None:
    said = torch.tensor([0.9, 0.5, 0.1, 0.5 + 2e-7, 0.51])
    assert verdicts(said).tolist() == [1, 0, -1, 0, 1]


def test_wilsons_interval() -> None:
    # 8 of 10: roots of (p - 0.8)^2 = z^2 p (1 - p) / 10, from the quadratic formula
    z = 1.959964
    a, b, c = 1 + z**2 / 10, -(2 * 0.8 + z**2 / 10), 0.64
    root = math.sqrt(b**2 - 4 * a * c)
    found = share(torch.tensor([True] * 8 + [False] * 2))
    assert found == pytest.approx((0.8, (-b - root) / (2 * a), (-b + root) / (2 * a), 10), abs=1e-9)
    assert found is not None
    assert (round(found.low, 4), round(found.high, 4)) == (0.4902, 0.9433)  # as statistical tables have it
    none, all_of = share(torch.zeros(5, dtype=torch.bool)), share(torch.ones(5, dtype=torch.bool))
    assert none is not None
    assert all_of is not None
    assert (none.low, all_of.high) == (0, 1)
    assert none.high == pytest.approx(1 - all_of.low)
    assert share(torch.zeros(0, dtype=torch.bool)) is None


def test_a_mean_with_its_standard_error() -> None:
    # 1, 2, 3, 6: mean 3, variance (4 + 1 + 0 + 9) / 3
    half = 1.959964 * math.sqrt(14 / 3 / 4)
    assert mean(torch.tensor([1.0, 2, 3, 6])) == pytest.approx((3, 3 - half, 3 + half, 4))
    assert mean(torch.tensor([0.25])) == (0.25, 0.25, 0.25, 1)
    assert mean(torch.zeros(0)) is None


def test_cohens_kappa() -> None:
    # Cohen's table with 20 yes/yes, 5 yes/no, 10 no/yes, 15 no/no: p_o = 0.7, p_e = 0.5 * 0.6 + 0.5 * 0.4 = 0.5
    first = torch.tensor([1] * 25 + [-1] * 25)
    second = torch.tensor([1] * 20 + [-1] * 5 + [1] * 10 + [-1] * 15)
    assert kappa(first, second) == pytest.approx(0.4)
    found = agreement(first, second)
    assert found is not None
    assert found.value == pytest.approx(0.7)
    assert kappa(first, first) == pytest.approx(1)
    assert kappa(first, -first) == pytest.approx(-1)
    # With ties, p_o = 1/3 and p_e = (2/3 * 1/3 + 1/3 * 0 + 0 * 2/3) = 2/9
    assert kappa(torch.tensor([1, 1, 0]), torch.tensor([1, -1, -1])) == pytest.approx((1 / 3 - 2 / 9) / (7 / 9))
    assert kappa(torch.ones(3), torch.ones(3)) is None
    assert kappa(torch.ones(0), torch.ones(0)) is None


def test_agreement_with_scores_leaves_ties_of_both_out() -> None:
    found = with_scores(torch.tensor([0.9, 0.9, 0.2, 0.5, 0.8]), torch.tensor([1.0, -2.0, -0.5, 1.0, 0.0]))
    assert found is not None
    assert (found.value, found.pairs) == (pytest.approx(2 / 3), 3)


def test_position_bias() -> None:
    # Shown first and shown second: sure both times; flips; flips; ties once; always for the second place.
    both = torch.tensor([[0.9, 0.8], [0.7, 0.4], [0.3, 0.6], [0.5, 0.2], [0.1, 0.9]])
    found = position_bias(both)
    flips, first = found["flips"], found["first"]
    assert flips is not None
    assert first is not None
    assert (flips.value, flips.pairs) == (0.75, 4)
    # What the one shown first gets of both showings: .9 and .2, .7 and .6, .3 and .4, .5 and .8, .1 and .1
    assert first.value == pytest.approx((1.1 + 1.3 + 0.7 + 1.3 + 0.2) / 10)
    assert position_bias(torch.tensor([[0.5, 0.5]]))["flips"] is None
