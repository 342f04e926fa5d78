"""The task: what may be asked, what may be answered, and the gold score of an answer.

Fifteen words in answers of one to four words make 54,240 responses a prompt, few enough to enumerate: whatever is an
estimate elsewhere (KL, expected reward, win rate, the optimal policy) is an exact number here.
"""

from __future__ import annotations

from functools import cache
from itertools import pairwise

import torch
from torch import Tensor

from lit_align.errors import UserError
from lit_align.exact.enumeration import word_table

TOPICS = ("cats", "dogs", "birds", "fish")
POSITIVE = ("lovely", "clever", "gentle")
NEGATIVE = ("awful", "boring", "nasty")
POLITE = ("gladly", "thanks")
FUNCTION = ("are", "and")
FILLER = ("um",)

WORDS = TOPICS + POSITIVE + NEGATIVE + POLITE + FUNCTION + FILLER
"""What responses are made of, in the order in which tables and enumerations number them."""

MAX_WORDS = 4
"""A response has 1 to `MAX_WORDS` words."""

PROMPTS = tuple(f"tell me about {topic}{ending}" for topic in TOPICS for ending in ("", " please"))
"""Topic x politeness asked for; the rows of every `(8, 54240)` table."""

ON_TOPIC = 1.5
OFF_TOPIC = -0.8
POSITIVE_WORD = 0.8
MAX_POSITIVE = 2
NEGATIVE_WORD = -1.2
POLITE_ASKED = 1.0
POLITE_UNASKED = -0.5
REPEAT = -0.7
FILLER_WORD = -0.4
LENGTH = -0.25
BEST_LENGTH = 3

_DECIMALS = 6  # sums of the same terms in another order differ in the last bit, and ties must compare as equal


def gold(prompt: str, response: str) -> float:
    """The gold score of any text as an answer to one of the prompts; what a policy should raise.

    It is the sum of

    - 1.5 if the topic's noun is present,
    - -0.8 for every noun of another topic,
    - 0.8 for every positive word, up to two,
    - -1.2 for every negative word,
    - 1 if politeness was asked for and a polite word is present, -0.5 if present unasked,
    - -0.7 for every word equal to the one before it,
    - -0.4 for every filler; a word that is none of `WORDS` counts as one,
    - -0.25 times the squared distance of the length from three words.

    Args:
        prompt: One of `PROMPTS`.
        response: Words separated by blanks, any number of them.

    Raises:
        UserError: Where the prompt is none of `PROMPTS`.
    """
    topic, asked = question(prompt)
    words = response.split()
    score = ON_TOPIC * (topic in words)
    score += OFF_TOPIC * sum(word in TOPICS and word != topic for word in words)
    score += POSITIVE_WORD * min(sum(word in POSITIVE for word in words), MAX_POSITIVE)
    score += NEGATIVE_WORD * sum(word in NEGATIVE for word in words)
    if any(word in POLITE for word in words):
        score += POLITE_ASKED if asked else POLITE_UNASKED
    score += REPEAT * sum(word == before for before, word in pairwise(words))
    score += FILLER_WORD * sum(word in FILLER or word not in WORDS for word in words)
    score += LENGTH * (len(words) - BEST_LENGTH) ** 2
    return round(score, _DECIMALS)


def question(prompt: str) -> tuple[str, bool]:
    """The topic of a prompt, and whether it asks for politeness.

    Raises:
        UserError: Where the prompt is none of `PROMPTS`.
    """
    if prompt not in PROMPTS:
        raise UserError(f"{prompt!r} is no prompt of mini_instruct, which knows {', '.join(map(repr, PROMPTS))}.")
    return next(topic for topic in TOPICS if topic in prompt.split()), prompt.endswith(" please")


@cache
def responses() -> tuple[str, ...]:
    """The 54,240 responses, numbered as the columns of every table of this task."""
    return tuple(
        " ".join(WORDS[word] for word in row if word >= 0) for row in word_table(len(WORDS), MAX_WORDS).tolist()
    )


@cache
def gold_scores() -> Tensor:
    """`gold` of every response to every prompt, `(8, 54240)` float64."""
    table = word_table(len(WORDS), MAX_WORDS)
    return torch.stack([_gold_row(table, *question(prompt)) for prompt in PROMPTS])


def _gold_row(table: Tensor, topic: str, asked: bool) -> Tensor:
    """`gold` of rows of word numbers, -1 after the last word: `(S, 4)` to `(S,)`."""

    def count(words: tuple[str, ...]) -> Tensor:
        return torch.isin(table, torch.tensor([WORDS.index(word) for word in words])).sum(1).double()

    on_topic = count((topic,))
    repeats = ((table[:, 1:] == table[:, :-1]) & (table[:, 1:] >= 0)).sum(1)
    length = (table >= 0).sum(1)
    score = ON_TOPIC * (on_topic > 0)
    score = score + OFF_TOPIC * (count(TOPICS) - on_topic)
    score = score + POSITIVE_WORD * count(POSITIVE).clamp(max=MAX_POSITIVE)
    score = score + NEGATIVE_WORD * count(NEGATIVE)
    score = score + (POLITE_ASKED if asked else POLITE_UNASKED) * (count(POLITE) > 0)
    score = score + REPEAT * repeats
    score = score + FILLER_WORD * count(FILLER)
    score = score + LENGTH * (length - BEST_LENGTH).square()
    return score.round(decimals=_DECIMALS)
