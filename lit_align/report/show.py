"""A comparison for people: a table in the terminal, and a picture."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from lit_align.report.exact import Comparison, Result
from lit_align.report.runs import Run

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.text import Annotation
    from matplotlib.transforms import Bbox

INK, FAINT, FRONTIER = "#1f2430", "#8a93a3", "#4a5a75"
COLORS = ("#0072b2", "#d55e00", "#009e73", "#c2689a", "#dd9500", "#49a6dc", "#757d89")
"""By a run's place in its group, as on the page; Okabe and Ito's, told apart by people with any colour vision."""

MARKERS = "os^Dv"


def print_table(comparison: Comparison, console: Console) -> None:
    """Prints the exact numbers, one row a run."""
    table = Table(
        title="Exact, over every response to every prompt of mini_instruct",
        caption="KL from the reference in nats; possible: the most gold that any policy can have at that KL; efficiency: "
        "the share of the possible gain over the reference; win rate: against the reference.",
        title_justify="left",
        caption_justify="left",
        box=SIMPLE_HEAD,
        pad_edge=False,
        collapse_padding=True,
    )
    table.add_column("run", style="bold")
    table.add_column("method")
    for title in ("gold", "KL", "possible", "efficiency", "win rate", "accuracy"):
        table.add_column(title, justify="right")
    for result in comparison.results:
        table.add_row(
            result.name,
            result.method,
            number(result.gold),
            number(result.kl),
            number(result.frontier_gold),
            percent(result.efficiency),
            percent(result.win_rate),
            percent(result.accuracy),
        )
    console.print(table)
    if comparison.best_accuracy is not None:
        console.print(f"The best accuracy that any reward model can have is {comparison.best_accuracy:.1%}.")


def print_metrics(runs: list[Run], console: Console) -> None:
    """Prints the last value that each run logged of everything in validation; of training, where it did not validate."""
    table = Table(title="Last logged", title_justify="left", box=SIMPLE_HEAD)
    table.add_column("metric")
    for run in runs:
        table.add_column(f"{run.name} ({run.method})", justify="right")
    columns = [logged(run) for run in runs]
    for name in sorted({name for column in columns for name in column}):
        table.add_row(name, *(number(column.get(name)) for column in columns))
    console.print(table)


def logged(run: Run) -> dict[str, float]:
    """What is worth showing of a run's metrics."""
    validated = {name: value for name, value in run.metrics.items() if name.startswith(("val/", "eval/"))}
    return validated or {name: value for name, value in run.metrics.items() if name.startswith("train/")}


def number(value: float | None) -> str:
    """Four digits, or a dash."""
    return "–" if value is None else f"{value:.4g}" if abs(value) >= 1e4 else f"{value:.3f}"


def percent(value: float | None) -> str:
    """One decimal, or a dash."""
    return "–" if value is None else f"{value:.1%}"


def draw_frontier(comparison: Comparison, file: Path) -> None:
    """Draws the runs against the frontier that no policy can cross.

    Args:
        comparison: With a frontier.
        file: A .png.
    """
    import matplotlib as mpl
    from matplotlib.figure import Figure

    points = [result for result in comparison.results if result.kl is not None and result.gold is not None]
    runs = sorted((result for result in points if (result.kl or 0.0) > 1e-3), key=lambda result: result.kl or 0.0)
    with mpl.rc_context({"font.size": 10, "axes.edgecolor": FAINT, "text.color": INK, "axes.labelcolor": INK}):
        figure = Figure(figsize=(8, 5), dpi=150, layout="constrained")
        axes = figure.add_subplot()
        _draw_frontier(axes, comparison, points)
        axes.set_xlabel("KL from the reference, nats (in percent: share of the gain that was possible at that KL)")
        axes.set_ylabel("expected gold score")
        axes.set_title("mini_instruct: what KL bought, and could have bought", loc="left", fontweight="bold")
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(colors=FAINT, labelcolor=INK)
        axes.grid(color=FAINT, alpha=0.2, linewidth=0.6)
        figure.draw_without_rendering()  # from here on the axes stay where they are, and pixels can be counted
        _draw_runs(axes, runs, {result.name: place for place, result in enumerate(comparison.results)})
        figure.savefig(file)


def _draw_frontier(axes: Axes, comparison: Comparison, points: list[Result]) -> None:
    """The frontier as far as the runs went and a little on, with some betas; what lies above it; the reference."""
    reference = comparison.reference_gold
    assert reference is not None
    right = max([1.0, *(1.3 * (result.kl or 0.0) for result in points)])
    curve = [(0.0, reference), *((point.kl, point.reward) for point in comparison.frontier)]
    top = max(gold for kl, gold in curve if kl <= right)
    bottom = min([reference, *(result.gold or 0.0 for result in points)])
    height = top - bottom
    kl, gold = zip(*curve, (max(right, curve[-1][0]), curve[-1][1]), strict=True)
    axes.fill_between(kl, gold, top + height, color=FRONTIER, alpha=0.07, linewidth=0)
    axes.plot(kl, gold, color=FRONTIER, linewidth=2.2, zorder=2)
    for point in comparison.frontier:
        if f"{point.beta:.3g}" in ("1", "0.501", "0.316", "0.2", "0.1") and point.kl < 0.97 * right:
            axes.plot(point.kl, point.reward, marker="|", markersize=9, color=FRONTIER, zorder=3)
            axes.annotate(
                f"β {point.beta:.1g}",
                (point.kl, point.reward),
                (-6, 9),
                textcoords="offset points",
                ha="right",
                color=FRONTIER,
            )
    axes.plot(0, reference, marker="D", markersize=8, color=INK, zorder=4, clip_on=False)
    axes.annotate("reference", (0, reference), (11, -4), textcoords="offset points")
    axes.text(0.985, 0.97, "out of reach of any policy", transform=axes.transAxes, ha="right", va="top", color=FRONTIER)
    axes.set_xlim(0, right)
    axes.set_ylim(bottom - 0.14 * height, top + 0.2 * height)


def _draw_runs(axes: Axes, runs: list[Result], place: dict[str, int]) -> None:
    """The runs by name, and their distance to the frontier."""
    from matplotlib.patheffects import withStroke

    labels = []
    for run in runs:
        kl, gold, best = run.kl or 0.0, run.gold or 0.0, run.frontier_gold or 0.0
        color, marker = COLORS[place[run.name] % len(COLORS)], MARKERS[place[run.name] % len(MARKERS)]
        axes.plot([kl, kl], [gold, best], color=color, linewidth=1.3, linestyle=":")
        axes.plot(kl, gold, marker=marker, markersize=9, color=color, markeredgecolor="white", zorder=5)
        text = run.name if run.efficiency is None else f"{run.name}  {run.efficiency:.0%}"
        labels.append(
            axes.annotate(
                text,
                (kl, gold),
                (0, 0),
                textcoords="offset pixels",
                va="bottom",
                fontweight="bold",
                fontsize=9,
                zorder=6,
                path_effects=[withStroke(linewidth=3, foreground="white")],
            )
        )
    _spread(axes, labels)


def _spread(axes: Axes, labels: list[Annotation]) -> None:
    """Moves each label to a place beside its point where it covers nothing, if there is one."""
    spots = [tuple(axes.transData.transform(label.xy)) for label in labels]
    taken = [_around(x, y, 18, 18) for x, y in spots]
    taken += [text.get_window_extent() for text in axes.texts if text not in labels]
    curve = axes.transData.transform_path(axes.lines[0].get_path())
    for label, (x, y) in zip(labels, spots, strict=True):
        places = _beside(x, y, label.get_window_extent())
        free = [box for box in places if not box.count_overlaps(taken) and not curve.intersects_bbox(box, filled=False)]
        inside = [box for box in free if axes.bbox.containsx(box.x1) and axes.bbox.containsy(box.y0)]
        chosen = (inside or free or places)[0]
        taken.append(chosen)
        label.set_position((chosen.x0 - x, chosen.y0 - y))


def _beside(x: float, y: float, size: Bbox) -> list[Bbox]:
    """Where the label of the point `(x, y)` may stand: right, left, below, above, then further down and up; pixels."""
    width, height = size.width, size.height
    sides = [x + 17 + width / 2, x - 17 - width / 2]
    near = [_around(side, y, width, height) for side in sides]
    near += [_around(x, y - 14 - height / 2, width, height), _around(x, y + 14 + height / 2, width, height)]
    lines = (sign * line for line in (1, 2, 3, 4) for sign in (-1, 1))
    return near + [_around(side, y + line * height, width, height) for line in lines for side in sides]


def _around(x: float, y: float, width: float, height: float) -> Bbox:
    from matplotlib.transforms import Bbox

    return Bbox.from_bounds(x - width / 2, y - height / 2, width, height)
