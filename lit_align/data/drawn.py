"""What the embedded tasks share: kinds of rows, and responses that became a row by being judged with noise."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from typing import Literal, get_args

from lit_align.errors import UserError
from lit_align.groups import Group

Kind = Literal["sft", "preference", "ranking", "label"]
Split = Literal["train", "val"]

RANKED = (4, 9)
"""Fewest and most responses of a ranking; every number between is as likely."""


def check_request(task: str, kind: str, rows: int, split: str) -> None:
    """Refuses rows that an embedded task does not have.

    Raises:
        UserError: There is no such kind or split, or fewer than one row was asked for.
    """
    if kind not in get_args(Kind):
        raise UserError(f"{task} has no rows of kind {kind!r}; ask for one of {', '.join(get_args(Kind))}.")
    if split not in get_args(Split):
        raise UserError(f"{task} has no split {split!r}; ask for 'train' or 'val'.")
    if rows < 1:
        raise UserError(f"{task} was asked for {rows} rows; ask for at least 1.")


def draw_k(kind: str, rng: random.Random) -> int:
    """How many responses a row of this kind has."""
    return {"preference": 2}.get(kind) or (rng.randint(*RANKED) if kind == "ranking" else 1)


def judged_row(
    kind: str, prompt: str, texts: Sequence[str], utilities: Sequence[float], rng: random.Random, source: str
) -> Group:
    """A row of a kind other than "sft": labels by Bradley-Terry on utilities, rankings by Plackett-Luce.

    Responses are ordered by utility plus standard Gumbel noise, so that any two of them compare as Bradley-Terry says. A
    response is desirable with probability sigmoid(utility): as if it were compared with one of utility 0.

    Args:
        kind: "preference" (two responses, the preferred one first), "ranking" (in the order given) or "label".
        prompt: What was asked.
        texts: Different responses, as many as the kind has.
        utilities: Of each response; a pair is decided by the difference of two, a label by one alone.
        rng: What noise is drawn from.
        source: As in `Group`.
    """
    if kind == "label":
        chance = 1 / (1 + math.exp(-utilities[0]))
        return Group(prompt, tuple(texts), labels=(rng.random() < chance,), source=source)
    noisy = {text: utility + gumbel(rng) for text, utility in zip(texts, utilities, strict=True)}
    best_first = sorted(texts, key=lambda text: -noisy[text])
    if kind == "preference":
        return Group(prompt, tuple(best_first), scores=(1.0, 0.0), source=source)
    scores = tuple(-float(best_first.index(text) + 1) for text in texts)
    return Group(prompt, tuple(texts), scores=scores, source=source)


def gumbel(rng: random.Random) -> float:
    """A standard Gumbel variate: the difference of two is logistic, which makes comparisons Bradley-Terry."""
    uniform = (rng.getrandbits(52) + 0.5) / 2**52  # neither 0 nor 1
    return -math.log(-math.log(uniform))
