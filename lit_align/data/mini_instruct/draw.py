"""Rows of the task: demonstrations, preferences, rankings and labels, drawn from the demonstrator and judged by gold."""

from __future__ import annotations

import random
from bisect import bisect_right
from functools import cache
from itertools import accumulate

from lit_align.data.drawn import Kind, Split, check_request, draw_k, judged_row
from lit_align.data.mini_instruct.demonstrator import demonstrator_logps
from lit_align.data.mini_instruct.task import PROMPTS, gold, gold_scores, responses
from lit_align.groups import Group


def groups(kind: Kind, rows: int, seed: int = 0, split: Split = "train") -> list[Group]:
    """Draw rows. Fewer rows of the same kind, seed and split are the first of more.

    Prompts are uniform. The responses of a row are independent draws of the demonstrator, drawn anew, all of them,
    until no two are equal. They are ordered by gold plus standard Gumbel noise, that is by a Plackett-Luce model at
    scale 1, so that any two of them compare as Bradley-Terry on gold says: P(y over y') = sigmoid(gold(y) - gold(y')).
    A label says whether a response would have been preferred to a middling one: it is desirable with probability
    sigmoid(gold(y) - m), m the median gold of the demonstrator's responses to that prompt.

    Args:
        kind: "sft" (one demonstration, nothing else known), "preference" (two responses, the preferred one first,
            scores (1, 0)), "ranking" (4 to 9 responses as drawn, scores are minus the ranks) or "label" (one response,
            desirable or not).
        rows: How many, at least 1.
        seed: Another seed gives other rows.
        split: "train" and "val" are different draws of the same distribution.

    Raises:
        UserError: Where an argument is none of those above.
    """
    check_request("mini_instruct", kind, rows, split)
    # Python's own generator: its stream for a string is the same in every version and on every platform
    rng = random.Random(f"mini_instruct/{kind}/{split}/{seed}")
    return [_row(kind, rng, source=f"mini_instruct {kind} {split}, row {row}") for row in range(rows)]


def _row(kind: str, rng: random.Random, source: str) -> Group:
    number = rng.randrange(len(PROMPTS))
    prompt = PROMPTS[number]
    texts = _draw(rng, number, draw_k(kind, rng))
    if kind == "sft":
        return Group(prompt, tuple(texts), source=source)
    middle = median_gold(number) if kind == "label" else 0.0
    return judged_row(kind, prompt, texts, [gold(prompt, text) - middle for text in texts], rng, source)


def _draw(rng: random.Random, prompt: int, k: int) -> list[str]:
    """K different responses."""
    cumulative = _cumulative()[prompt]
    while True:
        drawn = [responses()[bisect_right(cumulative, rng.random() * cumulative[-1])] for _ in range(k)]
        if len(set(drawn)) == k:
            return drawn


@cache
def median_gold(prompt: int) -> float:
    """Half of the demonstrator's responses to a prompt score at most this."""
    scores, order = gold_scores()[prompt].sort()
    reached = demonstrator_logps()[prompt][order].exp().cumsum(0)
    return float(scores[int((reached < 0.5).sum())])


@cache
def _cumulative() -> list[list[float]]:
    """Running sums of the demonstrator's probabilities, one list a prompt."""
    return [list(accumulate(row)) for row in demonstrator_logps().exp().tolist()]
