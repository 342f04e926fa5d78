from collections import Counter
from itertools import combinations
from typing import Literal

import pytest
import torch

from lit_align.data.mini_instruct import PROMPTS, demonstrator_logps, gold, gold_scores, groups, responses
from lit_align.data.mini_instruct.draw import median_gold
from lit_align.groups import Group

Kind = Literal["sft", "preference", "ranking", "label"]
KINDS: tuple[Kind, ...] = ("sft", "preference", "ranking", "label")


def margin(row: Group) -> torch.Tensor:
    """Gold of the first response over the second."""
    first, second, *_ = row.responses
    return torch.tensor(gold(str(row.prompt), first) - gold(str(row.prompt), second))


@pytest.mark.parametrize("kind", KINDS)
def test_rows_are_reproducible_and_nested(kind: Kind) -> None:
    rows = groups(kind, 50, seed=3)
    assert rows == groups(kind, 50, seed=3)
    assert rows[:20] == groups(kind, 20, seed=3)
    assert {row.prompt for row in groups(kind, 200)} == set(PROMPTS)


@pytest.mark.parametrize("kind", KINDS)
def test_seeds_and_splits_differ(kind: Kind) -> None:
    streams = [groups(kind, 50, seed=0), groups(kind, 50, seed=1), groups(kind, 50, seed=0, split="val")]
    drawn = [[row.responses for row in stream] for stream in streams]
    assert all(a != b for a, b in combinations(drawn, 2))


def test_first_rows_stay_what_they_are() -> None:
    row = groups("sft", 1)[0]
    assert (row.prompt, row.responses) == ("tell me about fish please", ("fish and birds fish",))
    assert row.source == "mini_instruct sft train, row 0"
    assert row.scores is None


def test_demonstrations_follow_the_demonstrator() -> None:
    rows = groups("sft", 20_000)
    p = demonstrator_logps().exp()
    observed = Counter((row.prompt, len(row.responses[0].split())) for row in rows)
    lengths = torch.tensor([len(text.split()) for text in responses()])
    for x, prompt in enumerate(PROMPTS):
        for length in range(1, 5):
            expected = p[x][lengths == length].sum().item() / 8
            sigma = (expected * (1 - expected) / 20_000) ** 0.5
            assert abs(observed[prompt, length] / 20_000 - expected) < 4 * sigma


def test_preferences_are_bradley_terry() -> None:
    rows = groups("preference", 20_000)
    assert all(row.scores == (1.0, 0.0) and row.responses[0] != row.responses[1] for row in rows)
    margins = torch.stack([margin(row) for row in rows])
    for low, high in ((0.3, 0.7), (1.0, 1.5), (2.0, 3.0)):
        won = ((margins > low) & (margins < high)).sum().item()
        lost = ((margins < -low) & (margins > -high)).sum().item()
        inside = margins.abs()[(margins.abs() > low) & (margins.abs() < high)]
        expected = torch.sigmoid(inside).mean().item()
        sigma = (expected * (1 - expected) / (won + lost)) ** 0.5
        assert abs(won / (won + lost) - expected) < 4 * sigma


def test_rankings_are_ragged_and_pairwise_bradley_terry() -> None:
    rows = groups("ranking", 3_000)
    assert {len(row.responses) for row in rows} == set(range(4, 10))
    residual, variance = 0.0, 0.0
    for row in rows:
        k = len(row.responses)
        assert row.scores is not None
        assert len(set(row.responses)) == k
        assert sorted(row.scores) == [-float(rank) for rank in range(k, 0, -1)]
        # The first two as they were drawn are one pair a row, independent of the other rows.
        p = torch.sigmoid(
            torch.tensor(gold(str(row.prompt), row.responses[0]) - gold(str(row.prompt), row.responses[1]))
        ).item()
        residual += (row.scores[0] > row.scores[1]) - p
        variance += p * (1 - p)
    assert abs(residual) < 4 * variance**0.5


def test_ranking_draws_are_not_sorted() -> None:
    first = Counter(row.scores[0] for row in groups("ranking", 500) if row.scores is not None)
    assert len(first) == 9


def test_labels_are_bernoulli_around_the_median() -> None:
    rows = groups("label", 8_000)
    p = demonstrator_logps().exp()
    residual, variance, desirable = 0.0, 0.0, 0
    for row in rows:
        x = PROMPTS.index(str(row.prompt))
        score = gold(str(row.prompt), row.responses[0])
        median = median_gold(x)
        assert row.labels is not None
        chance = torch.sigmoid(torch.tensor(score - median)).item()
        residual += row.labels[0] - chance
        variance += chance * (1 - chance)
        desirable += row.labels[0]
    assert abs(residual) < 4 * variance**0.5
    assert 0.4 < desirable / len(rows) < 0.6
    for x in range(len(PROMPTS)):
        below = p[x][gold_scores()[x] < median_gold(x)].sum().item()
        at_most = p[x][gold_scores()[x] <= median_gold(x)].sum().item()
        assert below < 0.5 <= at_most


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("pairs", 5, 0, "train"), "no rows of kind 'pairs'"),
        (("sft", 0, 0, "train"), "asked for 0 rows"),
        (("sft", 5, 0, "test"), "no split 'test'"),
    ],
)
def test_refuses(arguments: tuple[object, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        groups(*arguments)  # type: ignore[arg-type]
