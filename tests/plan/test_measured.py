"""What is planned against what runs take, every method at three sizes; each case is a process of its own."""

from __future__ import annotations

import pytest

from benchmarks.plan_memory import CASES, compare

METHODS = ["SFT", "RewardModel", "DPO", "KTO", "RRHF", "RRHF, candidates", "PPO", "PPO, critic", "OnlineDPO", "SPA"]
SETTINGS = [case for case in CASES if case not in METHODS]


@pytest.mark.slow
@pytest.mark.parametrize("case", METHODS)
def test_every_method_takes_what_is_planned(case: str):
    check(case, ["3M", "10M", "30M"])


@pytest.mark.slow
@pytest.mark.parametrize("case", SETTINGS)
def test_layouts_precisions_and_adapters_take_what_is_planned(case: str):
    check(case, ["10M"])


def check(case: str, sizes: list[str]) -> None:
    for size, (planned, taken) in compare(case, sizes).items():
        assert planned == pytest.approx(taken, rel=0.15), f"{case}, {size}"
