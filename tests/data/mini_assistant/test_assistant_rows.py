from __future__ import annotations

import math
import re
import statistics
from dataclasses import astuple
from itertools import combinations
from pathlib import Path
from random import Random
from typing import Literal

import pytest

from lit_align.data.mini_assistant import MAX_WORDS, PROMPTS, RESPECTFUL, SPLITS, TOXIC, gold, gold_parts, groups
from lit_align.data.mini_assistant.demonstrator import CAREFUL, CARELESS, ORDINARY, demonstration, draw_writer
from lit_align.data.mini_assistant.draw import LABEL_SCALE, MIDDLING_GOLD
from lit_align.data.mini_assistant.grammar import WORDS
from lit_align.data.mini_assistant.prompts import question

Kind = Literal["sft", "preference", "ranking", "label"]
KINDS: tuple[Kind, ...] = ("sft", "preference", "ranking", "label")
WRITERS = (CARELESS, ORDINARY, CAREFUL)


@pytest.mark.parametrize("kind", KINDS)
def test_rows_are_reproducible_and_nested(kind: Kind) -> None:
    rows = groups(kind, 50, seed=3)
    assert rows == groups(kind, 50, seed=3)
    assert rows[:20] == groups(kind, 20, seed=3)


@pytest.mark.parametrize("kind", KINDS)
def test_seeds_splits_and_parts_differ(kind: Kind) -> None:
    streams = [groups(kind, 20), groups(kind, 20, seed=1), groups(kind, 20, split="val"), groups(kind, 20, part="seed")]
    drawn = [[row.responses for row in stream] for stream in streams]
    assert all(a != b for a, b in combinations(drawn, 2))


def test_first_rows_stay_what_they_are() -> None:
    row = groups("preference", 1, part="seed")[0]
    assert (row.prompt, row.responses) == (
        "recommend painters : home and needs",
        (
            "i recommend painters because they stay in harbours and seek sunlight .",
            "i recommend painters because they depend on sunlight and seem proud . ferns enjoy midnight .",
        ),
    )
    assert row.scores == (1.0, 0.0)
    assert row.source == "mini_assistant preference train seed, row 0"
    assert [row.prompt for row in groups("sft", 2)] == [
        "recommend weavers : home and nature please",
        "respectful: recommend vines : home and nature please",
    ]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("part", list(SPLITS))
def test_a_part_has_its_own_prompts(kind: Kind, part: Literal["seed", "train", "heldout"]) -> None:
    assert {row.prompt for row in groups(kind, 300, part=part)} <= set(SPLITS[part])


def test_prompts_without_a_part() -> None:
    assert {str(row.prompt) for row in groups("preference", 1000)} <= {*SPLITS["seed"], *SPLITS["train"]}
    assert {str(row.prompt) for row in groups("sft", 300, split="val")} <= {*SPLITS["heldout"]}
    demonstrated = [str(row.prompt) for row in groups("sft", 4000)]
    prefixed = [prompt for prompt in demonstrated if prompt.startswith(RESPECTFUL)]
    skills = [prompt for prompt in demonstrated if prompt not in PROMPTS and not prompt.startswith(RESPECTFUL)]
    for count, share in ((len(prefixed), 0.1), (len(skills), 0.2)):
        assert abs(count / 4000 - share) < 4 * (share * (1 - share) / 4000) ** 0.5
    assert not {prompt.removeprefix(f"{RESPECTFUL} ") for prompt in demonstrated} & set(SPLITS["heldout"])


def test_answers_are_made_of_the_words_and_not_too_long() -> None:
    for row in groups("ranking", 300):
        for text in row.responses:
            assert set(text.split()) <= set(WORDS)
            assert 1 <= len(text.split()) <= MAX_WORDS


def test_habits_come_together() -> None:
    rng = Random(0)
    means = []
    for writer in WRITERS:
        asked = [question(prompt) for prompt in PROMPTS]
        means.append([gold_parts(str(a), demonstration(rng, a, writer)) for a in asked])
    for part in ("topic", "request", "coverage", "truth", "fluency", "repeats", "toxicity", "politeness"):
        careless, ordinary, careful = (statistics.mean(parts[part] for parts in of_writer) for of_writer in means)
        assert careless < ordinary < careful, part


def test_the_page_has_every_habit() -> None:
    page = (Path(__file__).parents[3] / "docs" / "mini-assistant.md").read_text(encoding="utf-8")
    table = page.partition("| Habit |")[2].partition("| gold of")[0]
    cells = [re.split(r" *\| *", row)[2:5] for row in table.splitlines()[2:] if row]
    columns = [[float(number) for cell in column for number in cell.split(";")] for column in zip(*cells, strict=True)]
    assert columns == [list(astuple(writer)) for writer in (CAREFUL, ORDINARY, CARELESS)]


def test_shares_of_writers() -> None:
    assert sum(writer.share for writer in WRITERS) == pytest.approx(1.0)
    rng = Random(0)
    drawn = [draw_writer(rng) for _ in range(4000)]
    for writer in WRITERS:
        assert abs(drawn.count(writer) / 4000 - writer.share) < 4 * (writer.share / 4000) ** 0.5


def test_the_prefix_makes_toxic_words_rarer() -> None:
    rng = Random(0)

    def toxic(prompt: str) -> float:
        answers = [demonstration(rng, question(prompt), CARELESS) for _ in range(2000)]
        return statistics.mean(not TOXIC.isdisjoint(answer.split()) for answer in answers)

    assert toxic(PROMPTS[0]) == pytest.approx(0.35, abs=4 * (0.35 * 0.65 / 2000) ** 0.5)
    assert toxic(f"{RESPECTFUL} {PROMPTS[0]}") == pytest.approx(0.07, abs=4 * (0.07 * 0.93 / 2000) ** 0.5)


def test_documented_figures() -> None:
    rows = groups("sft", 20_000, seed=7, part="train")
    scores = [gold(str(row.prompt), row.responses[0]) for row in rows]
    assert statistics.mean(scores) == pytest.approx(1.77, abs=4 * 2.57 / 20_000**0.5)
    assert statistics.stdev(scores) == pytest.approx(2.57, abs=0.06)
    for polite in (False, True):
        of_kind = [score for row, score in zip(rows, scores, strict=True) if question(str(row.prompt)).polite == polite]
        below = statistics.mean(score <= MIDDLING_GOLD[polite] for score in of_kind)
        assert below == pytest.approx(0.5, abs=4 * 0.5 / len(of_kind) ** 0.5 + 0.01)


def test_preferences_are_bradley_terry() -> None:
    margins = [
        LABEL_SCALE * (gold(str(row.prompt), row.responses[0]) - gold(str(row.prompt), row.responses[1]))
        for row in groups("preference", 10_000)
    ]
    right = [1 / (1 + math.exp(-abs(margin))) for margin in margins]
    assert statistics.mean(right) == pytest.approx(0.786, abs=0.006)
    for low, high in ((0.2, 0.6), (0.8, 1.5), (2.0, 3.0)):
        inside = [margin for margin in margins if low < abs(margin) < high]
        expected = statistics.mean(1 / (1 + math.exp(-abs(margin))) for margin in inside)
        sigma = (expected * (1 - expected) / len(inside)) ** 0.5
        assert abs(statistics.mean(margin > 0 for margin in inside) - expected) < 4 * sigma


def test_labels_are_bernoulli_around_the_median() -> None:
    residual, variance = 0.0, 0.0
    for row in groups("label", 5_000):
        middle = {False: 2.05, True: 2.54}[str(row.prompt).endswith(" please")]
        chance = 1 / (1 + math.exp(-0.6 * (gold(str(row.prompt), row.responses[0]) - middle)))
        assert row.labels is not None
        residual += row.labels[0] - chance
        variance += chance * (1 - chance)
    assert abs(residual) < 4 * variance**0.5


def test_rankings() -> None:
    residual, variance = 0.0, 0.0
    for row in groups("ranking", 1_000):
        k = len(row.responses)
        assert row.scores is not None
        assert 4 <= k <= 9
        assert len(set(row.responses)) == k
        assert sorted(row.scores) == [-float(rank) for rank in range(k, 0, -1)]
        gap = gold(str(row.prompt), row.responses[0]) - gold(str(row.prompt), row.responses[1])
        chance = 1 / (1 + math.exp(-0.6 * gap))
        residual += (row.scores[0] > row.scores[1]) - chance
        variance += chance * (1 - chance)
    assert abs(residual) < 4 * variance**0.5


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("pairs", 5), "mini_assistant has no rows of kind 'pairs'"),
        (("sft", 0), "asked for 0 rows"),
        (("sft", 5, 0, "test"), "no split 'test'"),
        (("sft", 5, 0, "train", "test"), "no prompts 'test'"),
    ],
)
def test_refuses(arguments: tuple[object, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        groups(*arguments)  # type: ignore[arg-type]
