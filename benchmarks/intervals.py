"""What a few seeds say of a mean."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

STUDENT = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776, 6: 2.571, 7: 2.447, 8: 2.365, 9: 2.306, 10: 2.262}
"""The 97.5th percentile of Student's t for so many values."""


def half_width(values: Sequence[float]) -> float:
    """Half of the 95 % interval of their mean, by Student's t; for 2 to 10 values."""
    return STUDENT[len(values)] * statistics.stdev(values) / math.sqrt(len(values))


def interval(values: Sequence[float], sign: str = "") -> str:
    """Mean ± half of its 95 % interval; the mean alone where there is one value."""
    mean = f"{statistics.mean(values):{sign}.3f}"
    return f"{mean} ± {half_width(values):.3f}" if len(values) in STUDENT else mean
