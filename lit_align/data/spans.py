"""What stretches of a response's text weigh: by word, by what an edit changed, and at last by token."""

from __future__ import annotations

import re
from collections.abc import Sequence
from difflib import SequenceMatcher

import numpy as np

from lit_align.groups import Span


def words(text: str) -> list[tuple[int, int]]:
    """Where the words of a text begin and end.

    Words are what whitespace parts. It belongs to the word after it, and to the last one where none comes.
    """
    found = [match.span() for match in re.finditer(r"\s*\S+", text)]
    return [*found[:-1], (found[-1][0], len(text))] if found else []


def unchanged_spans(original: str, edited: str, weight: float) -> tuple[Span, ...]:
    """The words of `edited` that an edit left as they were, each as a span of that weight.

    What was changed is found by the longest common blocks of words. Where words were taken away the edit shows in nothing but
    the word that follows (or, at the end, the last one), which therefore counts as changed.
    """
    places = words(edited)
    before, after = original.split(), edited.split()
    unchanged = set(range(len(after)))
    for tag, _, _, first, last in SequenceMatcher(None, before, after, autojunk=False).get_opcodes():
        if tag == "delete":
            unchanged.discard(min(first, len(after) - 1))
        elif tag != "equal":
            unchanged.difference_update(range(first, last))
    return tuple(Span(*places[word], weight) for word in sorted(unchanged))


def token_weights(text: str, spans: Sequence[Span], offsets: Sequence[tuple[int, int]]) -> list[float]:
    """What each token weighs: the mean of its characters, of those that are no whitespace where it has any.

    Args:
        text: The response, not empty.
        spans: Of the response.
        offsets: First character and the one after the last of each token, in the response. What lies outside of it, as what a
            template puts around a response, weighs what the nearest character does.
    """
    weights = np.ones(len(text))
    for start, end, weight in spans:
        weights[start:end] = weight
    visible = np.array([not character.isspace() for character in text], dtype=np.float64)
    counts, sums = (np.concatenate([[0.0], np.cumsum(values)]) for values in (visible, visible * weights))
    starts, ends = np.clip(np.array(offsets, dtype=np.int64).reshape(-1, 2), 0, len(text)).T
    count = counts[ends] - counts[starts]
    mean = (sums[ends] - sums[starts]) / np.maximum(count, 1.0)
    nearest = weights[np.minimum(starts, len(text) - 1)]
    return [float(weight) for weight in np.where(count > 0, mean, nearest)]
