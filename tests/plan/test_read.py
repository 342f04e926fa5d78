"""What of a config decides how much an optimiser keeps."""

from __future__ import annotations

from typing import Any

import pytest

from lit_align.plan.read import _moments


@pytest.mark.parametrize(
    ("kind", "options", "numbers"),
    [
        ("AdamW", {}, 2),
        ("AdamW", {"kahan_sum": False}, 2),
        ("AdamW", {"kahan_sum": True}, 3),  # both moments and what rounding took
        ("SGD", {}, 0),
        ("SGD", {"momentum": 0.9}, 1),
        ("SGD", {"momentum": 0.9, "kahan_sum": True}, 2),
        ("SomebodysOwn", {}, 2),
    ],
)
def test_the_numbers_an_optimiser_keeps_of_each_weight(kind: str, options: dict[str, Any], numbers: int) -> None:
    assert _moments(kind, options) == numbers
