from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence

import pytest
import torch

from lit_align.errors import UserError
from lit_align.feedback import (
    Answer,
    Clipped,
    FunctionReward,
    MissingEOSPenalty,
    Normalised,
    RewardSource,
    Scores,
    WeightedSum,
)
from lit_align.feedback.combine import Moments

NUMBER = FunctionReward(lambda prompt, response: float(response))
"""Scores an answer that is a number by that number."""


def numbers(*values: float) -> list[Answer]:
    return [Answer("p", str(value), [1], [2], True) for value in values]


class Remembers(RewardSource):
    """Notes what wrappers hand on."""

    def __init__(self) -> None:
        self.device = ""
        self.rollouts = 0

    def __call__(self, answers: Sequence[Answer]) -> Scores:
        return Scores(torch.zeros(len(answers)), {})

    def score_rollout(self, answers: Sequence[Answer]) -> Scores:
        self.rollouts += 1
        return self(answers)

    def to(self, device: torch.device | str) -> None:
        self.device = str(device)

    def state_dict(self) -> dict[str, int]:
        return {"rollouts": self.rollouts}

    def load_state_dict(self, state: object) -> None:
        self.rollouts = state["rollouts"]  # type: ignore[index]


@pytest.mark.parametrize(
    "wrap",
    [
        lambda source: WeightedSum({"it": source}, {"it": 1.0}),
        lambda source: Clipped(source, low=0.0),
        Normalised,
        lambda source: Clipped(WeightedSum({"it": Normalised(source)}, {"it": 2.0}), high=1.0),
    ],
)
def test_wrappers_hand_everything_on(wrap: Callable[[RewardSource], RewardSource]) -> None:
    inner, fresh = Remembers(), Remembers()
    outer = wrap(inner)
    outer.to("meta")
    outer(numbers(1.0))
    outer.score_rollout(numbers(1.0))
    assert (inner.device, inner.rollouts) == ("meta", 1)
    wrap(fresh).load_state_dict(outer.state_dict())
    assert fresh.rollouts == 1


def test_weighted_sum_adds_with_weights_and_shows_parts_without() -> None:
    reward = WeightedSum(
        {"number": NUMBER, "eos": MissingEOSPenalty(1.0), "watched": NUMBER},
        {"number": 2.0, "eos": 0.5, "watched": 0.0},
    )
    scores = reward([Answer("p", "3", [1], [2], False), Answer("p", "-1", [1], [2], True)])
    assert scores.total.tolist() == [5.5, -2.0]
    assert {name: values.tolist() for name, values in scores.components.items()} == {
        "number": [3.0, -1.0],
        "eos": [-1.0, 0.0],
        "watched": [3.0, -1.0],
    }


def test_parts_of_parts_are_named_after_both() -> None:
    inner = WeightedSum({"a": NUMBER, "b": NUMBER}, {"a": 1.0, "b": 1.0})
    scores = WeightedSum({"inner": inner, "clipped": Clipped(NUMBER, high=1.0)}, {"inner": 1.0, "clipped": 1.0})(
        numbers(2.0)
    )
    assert scores.total.tolist() == [5.0]
    assert {name: values.item() for name, values in scores.components.items()} == {
        "inner": 4.0,
        "inner/a": 2.0,
        "inner/b": 2.0,
        "clipped": 1.0,
        "clipped/unclipped": 2.0,
    }


def test_weighted_sum_of_no_answers() -> None:
    scores = WeightedSum({"a": NUMBER}, {"a": 1.0})([])
    assert scores.total.shape == scores.components["a"].shape == (0,)


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ({}, "no weight for 'a'"),
        ({"a": 1.0, "b": 1.0}, "no source named 'b'"),
        ({"aa": 1.0}, "no weight for 'a', no source named 'aa'"),
        ({"a": float("nan")}, "weight of 'a' must be a finite number"),
    ],
)
def test_weights_that_do_not_fit_the_sources_are_refused(weights: dict[str, float], message: str) -> None:
    with pytest.raises(UserError, match=message):
        WeightedSum({"a": NUMBER}, weights)


def test_a_sum_of_nothing_is_refused() -> None:
    with pytest.raises(UserError, match="at least one source"):
        WeightedSum({}, {})


def test_the_part_that_gives_no_number_is_named() -> None:
    class Broken(RewardSource):
        def __call__(self, answers: Sequence[Answer]) -> Scores:
            return Scores(torch.full((len(answers),), float("inf")), {})

    with pytest.raises(UserError, match=r"The reward 'bad' gave inf for the answer '1.0'"):
        WeightedSum({"good": NUMBER, "bad": Broken()}, {"good": 1.0, "bad": 1.0})(numbers(1.0))


def test_a_sum_resumes_only_with_its_own_parts() -> None:
    saved = WeightedSum({"a": Normalised(NUMBER), "b": NUMBER}, {"a": 1.0, "b": 1.0})
    saved.score_rollout(numbers(1.0, 3.0))
    state = saved.state_dict()
    assert state.keys() == {"a"}
    with pytest.raises(UserError, match="'a', which the WeightedSum no longer has"):
        WeightedSum({"b": NUMBER}, {"b": 1.0}).load_state_dict(state)
    with pytest.raises(UserError, match="FunctionReward, which has none"):
        WeightedSum({"a": NUMBER, "b": NUMBER}, {"a": 1.0, "b": 1.0}).load_state_dict(state)
    with pytest.raises(UserError, match="no running statistics for Normalised"):
        WeightedSum({"a": Normalised(NUMBER), "b": Normalised(NUMBER)}, {"a": 1.0, "b": 1.0}).load_state_dict(state)


def test_clipped_keeps_within_limits_and_shows_what_was_there() -> None:
    scores = Clipped(NUMBER, low=-1.0, high=2.0)(numbers(-5.0, 0.5, 7.0))
    assert scores.total.tolist() == [-1.0, 0.5, 2.0]
    assert scores.components["unclipped"].tolist() == [-5.0, 0.5, 7.0]
    assert Clipped(NUMBER, low=0.0)(numbers(-5.0, 7.0)).total.tolist() == [0.0, 7.0]


def test_clipped_without_effect_is_refused() -> None:
    with pytest.raises(UserError, match="nothing to clip"):
        Clipped(NUMBER)
    with pytest.raises(UserError, match="must be smaller than high"):
        Clipped(NUMBER, low=1.0, high=1.0)


@pytest.mark.parametrize("remove_mean", [False, True])
def test_normalised_by_all_rollouts_so_far(remove_mean: bool) -> None:
    reward = Normalised(NUMBER, remove_mean)
    first, second = [4.0, 6.0, 9.5], [100.0, 101.0]
    reward.score_rollout(numbers(*first))
    seen = [*first, *second]
    mean, std = statistics.fmean(seen), statistics.pstdev(seen)
    expected = [(value - mean * remove_mean) / std for value in second]
    assert reward.score_rollout(numbers(*second)).total.tolist() == pytest.approx(expected, rel=1e-6)
    assert reward(numbers(3.0)).total.item() == pytest.approx((3.0 - mean * remove_mean) / std, rel=1e-6)


def test_normalising_outside_of_rollouts_changes_nothing() -> None:
    reward = Normalised(NUMBER, remove_mean=True)
    assert reward(numbers(5.0, 7.0)).total.tolist() == [5.0, 7.0]
    reward.score_rollout(numbers(1.0, 3.0))
    before = reward.state_dict()
    scores = reward(numbers(1000.0))
    assert scores.total.item() == pytest.approx(998.0)
    assert scores.components["unnormalised"].item() == 1000.0
    assert reward.state_dict() == before


def test_equal_scores_are_not_blown_up() -> None:
    reward = Normalised(NUMBER, remove_mean=True)
    assert reward.score_rollout(numbers(*[0.1] * 7)).total.abs().max().item() < 1e-6
    assert Normalised(NUMBER).score_rollout(numbers(*[0.1] * 7)).total.tolist() == pytest.approx([0.1] * 7)


def test_scores_far_from_zero_keep_their_spread() -> None:
    scores = Normalised(NUMBER, remove_mean=True).score_rollout(numbers(100_000.0, 100_002.0))
    assert scores.total.tolist() == pytest.approx([-1.0, 1.0])


def test_an_empty_rollout_leaves_the_statistics_alone() -> None:
    reward = Normalised(NUMBER)
    assert reward.score_rollout([]).total.shape == (0,)
    reward.score_rollout(numbers(1.0, 3.0))
    before = reward.state_dict()
    reward.score_rollout([])
    assert reward.state_dict() == before


def test_normalised_goes_on_from_its_state() -> None:
    whole, half = Normalised(NUMBER), Normalised(NUMBER)
    rollouts = [numbers(1.0, 2.5), numbers(-3.0, 8.0)]
    expected = [whole.score_rollout(rollout).total for rollout in rollouts][-1]
    half.score_rollout(rollouts[0])
    resumed = Normalised(NUMBER)
    resumed.load_state_dict(half.state_dict())
    torch.testing.assert_close(resumed.score_rollout(rollouts[1]).total, expected, rtol=0, atol=0)


ROLLOUTS = [([1.0, 5.0, 2.0], [7.0]), ([], [0.5, 0.25])]
"""Two rollouts, each with what rank 0 and rank 1 sampled."""


def normalised(rollouts: Sequence[Sequence[float]]) -> tuple[list[float], list[float]]:
    """Statistics after the rollouts, and their scores one behind the other."""
    reward, totals = Normalised(NUMBER, remove_mean=True), []
    for values in rollouts:
        totals += reward.score_rollout(numbers(*values)).total.tolist()
    state = reward.state_dict()
    return [state["number"], state["mean"], state["squares"]], totals


def on_this_rank() -> tuple[list[float], list[float]]:
    torch.distributed.init_process_group("gloo")
    try:
        return normalised([parts[torch.distributed.get_rank()] for parts in ROLLOUTS])
    finally:
        torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_two_ranks_normalise_as_one(on_two_ranks: Callable[..., list[tuple[list[float], list[float]]]]) -> None:
    (state_0, totals_0), (state_1, totals_1) = on_two_ranks(on_this_rank)
    state, totals = normalised([[*first, *second] for first, second in ROLLOUTS])
    assert state_0 == state_1 == pytest.approx(state, rel=1e-12)
    assert [*totals_0, *totals_1] == pytest.approx(totals, rel=1e-6)


def test_statistics_are_merged_over_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    together, expected = normalised([[*first, *second] for first, second in ROLLOUTS])
    others = iter(Moments.of(torch.tensor(second)) for _, second in ROLLOUTS)
    monkeypatch.setattr("lit_align.feedback.combine.gather_per_rank", lambda mine: [mine, next(others)])
    state, totals = normalised([first for first, _ in ROLLOUTS])
    assert state == pytest.approx(together, rel=1e-12)
    assert totals == pytest.approx(expected[:3], rel=1e-6)
