"""What may be asked: request x topic x two aspects x politeness, in three parts that share no prompt."""

from __future__ import annotations

import random
from functools import cache
from itertools import combinations, product
from typing import Literal, NamedTuple, get_args

from lit_align.data.mini_assistant.grammar import ASPECTS, TOPICS
from lit_align.errors import UserError

Part = Literal["seed", "train", "heldout"]

REQUESTS = ("describe", "recommend", "introduce")

RESPECTFUL = "respectful:"
"""A prompt may begin with it; demonstrators then mind their language."""

PROMPTS_PER_TOPIC: dict[Part, int] = {"seed": 4, "train": 24, "heldout": 8}


class Question(NamedTuple):
    """A prompt, understood.

    Args:
        request: One of `REQUESTS`.
        topic: One of `TOPICS`.
        aspects: The two of `ASPECTS` that are asked about.
        polite: Whether politeness is asked for.
        respectful: Whether the prompt begins with `RESPECTFUL`.
    """

    request: str
    topic: str
    aspects: tuple[str, str]
    polite: bool
    respectful: bool = False

    def __str__(self) -> str:
        """The prompt itself."""
        prefix, ending = f"{RESPECTFUL} " * self.respectful, " please" * self.polite
        return f"{prefix}{self.request} {self.topic} : {self.aspects[0]} and {self.aspects[1]}{ending}"


def _split() -> dict[Part, tuple[str, ...]]:
    """The prompts of each topic are dealt out, so that every part has all topics."""
    dealt: dict[Part, list[str]] = {part: [] for part in get_args(Part)}
    for topic in TOPICS:
        prompts = [
            str(Question(request, topic, aspects, polite))
            for request, aspects, polite in product(REQUESTS, combinations(ASPECTS, 2), (False, True))
        ]
        random.Random(f"mini_assistant/prompts/{topic}").shuffle(prompts)
        for part, count in PROMPTS_PER_TOPIC.items():
            dealt[part] += prompts[:count]
            del prompts[:count]
    for part, prompts in dealt.items():
        random.Random(f"mini_assistant/prompts/{part}").shuffle(prompts)  # the first few have various topics
    return {part: tuple(prompts) for part, prompts in dealt.items()}


SPLITS = _split()
"""96 `seed` prompts for the few labels one has, 576 `train` prompts for what comes after, 192 `heldout` ones to evaluate on."""

PROMPTS = tuple(prompt for prompts in SPLITS.values() for prompt in prompts)
"""All 864 prompts."""


def question(prompt: str) -> Question:
    """A prompt, with or without `RESPECTFUL` before it, as what it asks.

    Raises:
        UserError: It is none of the task's.
    """
    found = _questions().get(prompt)
    if found is None:
        raise UserError(f"{prompt!r} is no prompt of mini_assistant, whose prompts are like {PROMPTS[0]!r}.")
    return found


@cache
def _questions() -> dict[str, Question]:
    every = product(REQUESTS, TOPICS, combinations(ASPECTS, 2), (False, True), (False, True))
    return {str(asked): asked for asked in (Question(*parts) for parts in every)}
