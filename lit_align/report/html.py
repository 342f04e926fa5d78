"""The report of a group as one page: a file that needs no network, and shows what runs wrote as text, never as markup."""

from __future__ import annotations

import base64
import hashlib
import html
import json
import math
from collections.abc import Sequence
from dataclasses import asdict
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import Any

from lit_align.report.curves import read_curves
from lit_align.report.exact import Comparison
from lit_align.report.runs import Run
from lit_align.report.sampled import SampledResult, sampled_win_rates
from lit_align.report.samples import SampleSet, drawn_samples, logged_samples
from lit_align.runtime.samples import FILE as SAMPLES_FILE

SCRIPTS = ("dom.js", "chart.js", "frontier.js", "tables.js", "curves.js", "samples.js", "main.js")
DIGITS = 6


def write_page(
    group: Path, runs: list[Run], comparison: Comparison, file: Path, sampled: Sequence[SampledResult] = ()
) -> None:
    """Writes the report of a group.

    Args:
        group: The folder of the group, which gives the page its name.
        runs: Its runs.
        comparison: What they reached, in the same order.
        file: An .html.
        sampled: What was measured on samples, of those runs that were.
    """
    file.write_text(page(page_data(group.resolve().name, runs, comparison, sampled)), encoding="utf-8")


def page_data(
    group: str, runs: list[Run], comparison: Comparison, sampled: Sequence[SampledResult] = ()
) -> dict[str, Any]:
    """What the page shows: report.json, and what the runs wrote."""
    return {
        "group": group,
        "report": comparison.as_dict(),
        "best_accuracy": comparison.best_accuracy,
        "remarks": comparison.remarks,
        "runs": [
            {
                "name": run.name,
                "method": run.method,
                "config": run.folder.config.read_text(encoding="utf-8"),
                "curves": {name: asdict(c.thinned()) for name, c in read_curves(run.folder.metrics).items()},
            }
            for run in runs
        ],
        "sampled": {
            "results": {result.name: result.as_dict() for result in sampled},
            "win_rates": sampled_win_rates(sampled),
        },
        "samples": [samples.as_dict() for samples in sample_sets(runs, comparison)],
    }


def sample_sets(runs: list[Run], comparison: Comparison) -> list[SampleSet]:
    """Responses drawn from the policies that were enumerated, and responses that runs logged; what there is of both."""
    drawn = {}
    if comparison.ref_logps is not None:
        drawn = {name: drawn_samples(logps, comparison.ref_logps) for name, logps in comparison.policies.items()}
    logged = {
        run.name: samples for run in runs if (samples := logged_samples(run.folder.path / SAMPLES_FILE)) is not None
    }
    sets = [
        SampleSet("drawn from the exported models", "gold score", drawn),
        SampleSet("logged in training, last time", "score", logged),
    ]
    return [samples for samples in sets if samples.runs]


def page(data: dict[str, Any]) -> str:
    """The page that shows `page_data`.

    Whatever is in the data stays data: it lies in a block that no browser runs, in which no `<` can end it, and the page's
    security policy names its own style and script by their hashes and allows nothing else.
    """
    style, script = _asset("style.css"), "\n".join(map(_asset, SCRIPTS))
    return Template(_asset("page.html")).substitute(
        title=html.escape(f"{data['group']} · lit_align"),
        style=style,
        style_hash=_hash(style),
        script=script,
        script_hash=_hash(script),
        data=json.dumps(_finite(data), allow_nan=False, separators=(",", ":")).replace("<", r"\u003c"),
    )


def _asset(name: str) -> str:
    return (files("lit_align.report") / "page" / name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    """As a content security policy names an inline script."""
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"


def _finite(value: Any) -> Any:
    """The same with six digits a number, and None for what JSON has no number for."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_finite(item) for item in value]
    if isinstance(value, float):
        return float(f"{value:.{DIGITS}g}") if math.isfinite(value) else None
    return value
