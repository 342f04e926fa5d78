"""Mutations of JSON-like values for fuzz tests: what people and broken programs leave in rows and configs."""

from __future__ import annotations

import copy
import math
import random
from collections.abc import Iterator
from typing import Any

ODD_VALUES: tuple[Any, ...] = (
    None,
    True,
    False,
    0,
    -1,
    1,
    3.5,
    10**400,
    1e308,
    math.nan,
    math.inf,
    -math.inf,
    "",
    " ",
    "\n",
    "\x00",
    "\ud800",
    "\u200b",
    "ﷺ" * 3,
    "null",
    "nan",
    "1",
    "{{ 1 / 0 }}",
    "<|im_end|>",
    "word " * 3000,
    [],
    [None],
    [[]],
    ["a", 1],
    {},
    {"": ""},
    {"role": "assistant"},
    {"role": "user", "content": None},
    [{"role": "assistant", "content": "x"}],
    [{"from": "human", "value": "x"}, {"from": "gpt", "value": "y"}],
)


def mutated(value: Any, draw: random.Random, names: tuple[str, ...]) -> Any:
    """A deep copy of a nested value in which one to three places were changed, removed, doubled, moved or renamed.

    Args:
        value: Dictionaries and lists, with keys that are text.
        draw: Where the choices come from.
        names: Keys that a place may be renamed to.
    """
    whole = [copy.deepcopy(value)]
    for _ in range(draw.randint(1, 3)):
        places = list(_places(whole))
        parent, key = places[draw.randrange(len(places))]
        change = draw.choice(("odd", "odd", "remove", "double", "rename", "swap", "wrap"))
        if parent is whole and change not in {"odd", "wrap"}:
            continue
        if change == "odd":
            parent[key] = copy.deepcopy(draw.choice(ODD_VALUES))
        elif change == "wrap":
            parent[key] = draw.choice(([parent[key]], {"value": parent[key]}, str(parent[key])))
        elif change == "remove":
            del parent[key]
        elif change == "double" and isinstance(parent, list):
            parent.insert(key, copy.deepcopy(parent[key]))
        elif change == "rename" and isinstance(parent, dict):
            parent[draw.choice(names)] = parent.pop(key)
        else:
            other_parent, other_key = places[draw.randrange(len(places))]
            parent[key] = copy.deepcopy(other_parent[other_key])
    return whole[0]


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Every place in a nested value, as what holds it and its key or index there."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in list(items):
        yield value, key
        yield from _places(inner)
