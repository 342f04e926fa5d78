"""Prompts that are trained on and validated on: a validation that says more than it knows."""

from __future__ import annotations

import numpy as np

from lit_align.data.streamed import EncodedGroups


def overlap(train: EncodedGroups, val: EncodedGroups) -> list[int]:
    """The rows of `val` whose prompt is a row's of `train`, in order.

    Prompts of a single token, which stand for plain text without any, are not counted.
    """
    keys, first = np.unique(train.prompt_keys, return_index=True)
    place = np.searchsorted(keys, val.prompt_keys).clip(max=len(keys) - 1)
    candidates = np.flatnonzero(keys[place] == val.prompt_keys).tolist()
    # Keys are short hashes: among many rows a few meet by chance, so that the prompts themselves have to be the same.
    prompts = {row: list(val[row].prompt) for row in candidates}
    return [row for row, ids in prompts.items() if len(ids) > 1 and ids == list(train[int(first[place[row]])].prompt)]
