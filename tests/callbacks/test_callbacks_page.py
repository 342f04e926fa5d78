"""docs/callbacks.md against what the callbacks are and log."""

from __future__ import annotations

import re
from pathlib import Path

import callbacks

PAGE = (Path(__file__).parents[2] / "docs" / "callbacks.md").read_text(encoding="utf-8")


def explained() -> set[str]:
    """Names of all metrics that have a row in a table."""
    cells = re.findall(r"^\| (.+?) \|", PAGE, re.MULTILINE)
    return {name for cell in cells for name in re.findall(r"`(eval/[^`]+)`", cell)}


def test_every_callback_has_a_section():
    sections = set(re.findall(r"^## (.+)$", PAGE, re.MULTILINE))
    assert set(callbacks.__all__) - {"Evaluation"} <= sections


def test_every_metric_that_a_docstring_names_is_explained():
    """A docstring says `eval/kl/k1` once and `/high` where the beginning is clear."""
    for name in set(callbacks.__all__) - {"Evaluation"}:
        text = getattr(callbacks, name).__doc__.split("Args:")[0]
        named = re.findall(r"`(eval/[\w/<>]+)`", text)
        begin = min(named, key=len).rpartition("/")[0] if named else ""
        short = re.findall(r"`/([\w/<>]+)`", text)
        for metric in [*named, *(f"{begin}/{end}" for end in short)]:
            ours = metric.replace("eval/high", "eval/win_rate/high")
            assert {ours, ours.replace("eval/", "eval/win_rate/", 1)} & explained(), f"{name}: {metric}"
