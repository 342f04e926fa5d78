"""What a run logged over its steps."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

from lit_align.report.runs import metric_rows

MOST_POINTS = 1000
"""Points of one curve in a report: more than a screen has columns of pixels for."""


@dataclass(frozen=True)
class Curve:
    """One metric of one run.

    Args:
        steps: Where it was logged, optimiser steps, ascending.
        values: What was logged there; None for NaN and infinity.
    """

    steps: list[int]
    values: list[float | None]

    def thinned(self, most: int = MOST_POINTS) -> Curve:
        """About `most` points: the lowest and the highest of each stretch, so that no spike is lost.

        A stretch with values that are not finite keeps the first of them as well. The last point stays the last.
        """
        if len(self.steps) <= most:
            return self
        stretch = math.ceil(2 * len(self.steps) / most)
        kept = {len(self.steps) - 1}
        for start in range(0, len(self.steps), stretch):
            places = range(start, min(start + stretch, len(self.steps)))
            finite = [(value, place) for place in places if (value := self.values[place]) is not None]
            kept |= {place for _, place in (min(finite), max(finite))} if finite else set()
            kept |= (
                {next(place for place in places if self.values[place] is None)} if len(finite) < len(places) else set()
            )
        order = sorted(kept)
        return Curve([self.steps[place] for place in order], [self.values[place] for place in order])


def read_curves(file: Path) -> dict[str, Curve]:
    """The curves of a metrics.csv by name; none where it is missing.

    Args:
        file: One row a logging step, one column a metric, empty where a row lacks it.
    """
    points: dict[str, list[tuple[int, float | None]]] = {}
    for row in metric_rows(file):
        step = row.pop("step", math.nan)
        for name, value in row.items():
            if name != "epoch" and math.isfinite(step):
                points.setdefault(name, []).append((int(step), value if math.isfinite(value) else None))
    ordered = {name: sorted(column, key=lambda point: point[0]) for name, column in points.items()}
    return {name: Curve([s for s, _ in column], [v for _, v in column]) for name, column in ordered.items()}
