"""Verdicts to rows, by hand."""

from __future__ import annotations

import pytest

from lit_align.annotation.candidates import Candidates, NoTokens
from lit_align.annotation.labels import pairs_of_row, places, preference_rows, scored_rows, win_rates
from lit_align.feedback import Answer


def candidates(*responses: str, models: tuple[str, ...] | None = None) -> Candidates:
    answers = tuple(Answer("p", text, NoTokens(), NoTokens(), text != "cut") for text in responses)
    return Candidates(answers, None, models)


def test_pairs_of_a_row() -> None:
    assert pairs_of_row("first", 4) == [(0, 1)]
    assert pairs_of_row("all", 3) == [(0, 1), (0, 2), (1, 2)]
    assert pairs_of_row("best_worst", 4, [1, 3, 0, 3]) == [(1, 2)]
    assert pairs_of_row("best_worst", 2, [1, 1]) == []


def test_win_rates_are_means_over_the_others() -> None:
    # 0 beats 1 with .9 and 2 with .6; 1 beats 2 with .3
    rates = win_rates([(0, 1), (0, 2), (1, 2)], [0.9, 0.6, 0.3], 3)
    assert rates == pytest.approx([(0.9 + 0.6) / 2, (0.1 + 0.3) / 2, (0.4 + 0.7) / 2])


def test_places_share_ties() -> None:
    assert places([0.5, 2.0, 0.5, 3.0, 0.1]) == [3, 2, 3, 1, 5]
    assert places([1 / 3, 1 - 2 / 3]) == [1, 1]


def test_preferences_the_better_first_and_ties_nowhere() -> None:
    rows = [candidates("a", "b", "c", models=("x", "y", "z")), candidates("d", "e")]
    made = preference_rows(rows, [[(0, 1), (0, 2)], [(0, 1)]], [0.25, 0.75, 0.5], None)
    assert made == [
        {
            "prompt": "p",
            "chosen": "b",
            "rejected": "a",
            "probability": 0.75,
            "model_chosen": "y",
            "model_rejected": "x",
        },
        {
            "prompt": "p",
            "chosen": "a",
            "rejected": "c",
            "probability": 0.75,
            "model_chosen": "x",
            "model_rejected": "z",
        },
    ]
    (made,) = preference_rows(rows[1:], [[(0, 1)]], [0.4], [{0: 1.0, 1: 1.5}])
    assert (made["score_chosen"], made["score_rejected"], made["probability"]) == (1.5, 1.0, 0.6)


def test_rows_with_scores_or_ranks() -> None:
    rows = [candidates("a", "cut", models=("x", "y"))]
    assert scored_rows(rows, [[0.2, 0.8]], "scores") == [
        {
            "prompt": "p",
            "responses": ["a", "cut"],
            "scores": [0.2, 0.8],
            "finished": [True, False],
            "models": ["x", "y"],
        }
    ]
    (ranked,) = scored_rows(rows, [[0.2, 0.8]], "rankings")
    assert (ranked["ranking"], ranked["ranked_by"]) == ([2, 1], [0.2, 0.8])
    assert "scores" not in ranked
