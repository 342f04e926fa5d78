"""Who writes the responses of the data: a fixed bigram model with a bias to the topic.

Its weights are in this file and never change, so that the data, and every number drawn from them, stay comparable.
Averaged over the prompts: entropy 7.05 nats, gold -0.27 +- 1.39, and the best possible reward model agrees with 77.6 %
of Bradley-Terry labels on gold.
"""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

from lit_align.data.mini_instruct.task import MAX_WORDS, PROMPTS, WORDS, question
from lit_align.exact.enumeration import word_table

TOPIC_BIAS = 3.0
"""What the weight of the topic's noun is multiplied by, whatever word it follows."""

# fmt: off
WEIGHTS = (
    # cats dogs birds fish, lovely clever gentle, awful boring nasty, gladly thanks, are and um, end of response
    (78, 39, 46, 57,  18,  8,  7,   5,  5,  4,   4,  4,   3,  1, 20,    0),  # first word
    ( 6,  4,  6,  5,  10,  6,  6,   9, 16,  8,   2,  4,  79, 96,  4,   39),  # after cats
    ( 8,  7,  5,  4,   9,  4,  6,  11, 17,  7,   2,  3,  83, 74,  3,   58),  # after dogs
    ( 5,  7,  5,  5,   6,  5,  4,  16, 18,  9,   3,  5,  88, 76,  4,   43),  # after birds
    ( 9,  7,  7,  4,   7,  7,  8,  20, 16, 15,   2,  5,  63, 65,  3,   62),  # after fish
    (10, 10, 17,  7,   6,  7,  4,   3,  3,  3,   5,  7,   2,  9,  6,  200),  # after lovely
    (21, 12, 12, 11,   7,  5,  5,   4,  4,  3,   5, 15,   3, 16,  7,  169),  # after clever
    (23, 11, 19, 12,   9,  5,  8,   2,  4,  4,   5, 14,   3, 15,  9,  157),  # after gentle
    (23, 14, 19, 17,  15,  6, 10,   4,  4,  2,   1,  2,   2, 23,  8,  149),  # after awful
    (20, 28, 20, 25,  13, 15, 12,   7,  5,  5,   2,  5,   3, 24,  9,  109),  # after boring
    (29, 17, 28, 21,  16,  7,  8,   4,  5,  4,   1,  2,   2, 34,  8,  113),  # after nasty
    (21, 30, 25, 22,  17, 14, 18,   2,  3,  2,   1,  3,   5,  4,  5,  128),  # after gladly
    (39, 39, 26, 20,  18, 14, 27,   3,  2,  2,   1,  2,   5,  2,  5,   95),  # after thanks
    ( 9,  9,  7,  4,  52, 24, 39,  42, 47, 22,   6, 10,   3,  6, 17,    4),  # after are
    (55, 91, 45, 66,   3,  3,  2,   6,  7,  7,   1,  2,   1,  4,  5,    1),  # after and
    (50, 50, 21, 22,  37, 35, 32,   8, 14,  7,   2,  3,   1,  2, 14,    1),  # after um
)
# fmt: on
"""Weights of the next word; what follows the last allowed word is always the end."""


@cache
def demonstrator_logps() -> Tensor:
    """Log-probability, nats, of every response to every prompt, `(8, 54240)` float64; each row sums to 1."""
    table = word_table(len(WORDS), MAX_WORDS)
    return torch.stack([_logps(table, topic=question(prompt)[0]) for prompt in PROMPTS])


def _logps(table: Tensor, topic: str) -> Tensor:
    """Log-probabilities of rows of word numbers, -1 after the last word: `(S, 4)` to `(S,)`."""
    weights = torch.tensor(WEIGHTS, dtype=torch.float64)
    weights[:, WORDS.index(topic)] *= TOPIC_BIAS
    transition = (weights / weights.sum(1, keepdim=True)).log()
    end = len(WORDS)
    before = torch.nn.functional.pad(table + 1, (1, 0))  # row 0 of the weights is for the first word
    after = torch.nn.functional.pad(torch.where(table < 0, end, table), (0, 1), value=end)
    happens = before > 0  # a word, or the end, follows every word
    happens[:, 0] = True
    happens[:, MAX_WORDS] = False  # certain
    return torch.where(happens, transition[before, after], 0.0).sum(1)
