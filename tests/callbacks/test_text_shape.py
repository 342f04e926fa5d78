from __future__ import annotations

import math

import pytest
import torch

from callbacks.text_shape import Spread, distinct_bigrams, rare, repetition, spread


def test_repetition_by_hand():
    assert repetition([7]) == 0
    assert repetition([7, 8, 9]) == 0
    assert repetition([7, 8, 7, 7, 1]) == pytest.approx(2 / 5)


def test_distinct_bigrams_by_hand():
    assert distinct_bigrams([[1, 2, 3], [1, 2, 4]]) == pytest.approx(3 / 4)  # 12 23, 12 24
    assert distinct_bigrams([[5, 5, 5]]) == pytest.approx(1 / 2)
    assert distinct_bigrams([[1], [2]]) == 1.0


def test_a_shift_is_in_standard_deviations_of_one_response():
    of_reference = spread(torch.tensor([[2.0, 4.0], [4.0, 6.0]]))
    assert of_reference == pytest.approx(Spread(4.0, math.sqrt(8 / 3)))
    assert of_reference.shift(4.0 + 2 * math.sqrt(8 / 3)) == pytest.approx(2.0)


def test_what_never_varied_may_have_been_rare():
    # One in ten of eight seen: p = 1 / 10, and the standard deviation of such a rate is sqrt(.1 * .9).
    assert spread(torch.ones(8)) == pytest.approx(Spread(1.0, math.sqrt(0.1 * 0.9)))
    assert spread(torch.full((8,), 3.0), least=1.0) == Spread(3.0, 1.0)


def test_what_is_rare_by_the_rule_of_three():
    assert rare(300) == pytest.approx(math.sqrt(0.01 * 0.99))
    assert rare(2) == 0.5
    assert pytest.approx(0.05, abs=2e-3) == (1 - 3 / 300) ** 300
