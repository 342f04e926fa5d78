"""What a pipeline shows on the terminal: how far it is, and what it found."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

Row = dict[str, Any]


@contextmanager
def progress(title: str, total: int, console: Console, unit: str) -> Iterator[Callable[[int, int], None]]:
    """A progress bar for as long as the context lasts.

    Args:
        title: What goes on.
        total: Rows in all.
        console: Where it is drawn.
        unit: Of the speed that stands behind it: "tokens/s".

    Yields:
        A function of the rows that are through, and of how many of the counted things came with the last ones of them.
    """
    columns = [
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[speed]}"),
        TimeRemainingColumn(),
    ]
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(title, total=total, speed="")
        counted = 0

        def update(done: int, more: int) -> None:
            nonlocal counted
            counted += more
            elapsed = bar.tasks[0].elapsed or 0.0
            speed = f"{counted / elapsed:,.0f} {unit}" if elapsed and counted else ""
            bar.update(task, completed=done, speed=speed)

        yield update


def print_report(said: Row, console: Console, drop_cut: bool) -> None:
    """The report of an annotation as a few lines and a table."""
    read = said["read"]
    left_out = {
        "rows with fewer than two different responses": read["too_few"],
        "empty responses": read["empty"],
        "repeated responses": read["repeated"],
    }
    notes = [f"{count:,} {what}" for what, count in left_out.items() if count]
    console.print(f"{read['rows']:,} rows read{', left out: ' + ', '.join(notes) if notes else ''}")
    if read["cut"]:
        hint = " and are left out" if drop_cut else "; --drop_cut true leaves them out"
        console.print(f"{read['cut']:,} responses had been cut by a length limit{hint}")
    console.print(f"{said['pairs']:,} pairs compared, {said['ties']:,} ties")
    if said["label_agrees_with_scores"]:
        console.print(f"The label agrees with the scores in the rows on {_share(said['label_agrees_with_scores'])}")
    if said["judges"]:
        console.print(_judges(said["judges"]))
    for pair in said["agreement"]:
        first, second = (number + 1 for number in pair["judges"])
        kappa = "–" if pair["kappa"] is None else f"{pair['kappa']:.3f}"
        console.print(f"Judges {first} and {second} agree on {_share(pair['share'])}; Cohen's kappa {kappa}")


def _judges(judges: list[Row]) -> Table:
    """One column a judge, because their names and intervals are long."""
    table = Table("", *(f"{number} {_name(judge['judge'])}" for number, judge in enumerate(judges, start=1)))
    positions = [judge["position"] or {} for judge in judges]
    table.add_row("ties", *(f"{judge['ties']:,}" for judge in judges))
    table.add_row("mean confidence", *(_number(judge["confidence"]) for judge in judges))
    table.add_row("agrees with scores in the rows", *(_share(judge["agrees_with_scores"]) for judge in judges))
    table.add_row("verdict flips with the order", *(_share(position.get("flips")) for position in positions))
    table.add_row("for the one shown first", *(_number(position.get("first")) for position in positions))
    return table


def _name(judge: Any) -> str:
    return str(judge["class_path"] if isinstance(judge, dict) else judge).rpartition(".")[2]


def _share(estimate: Row | None) -> str:
    if estimate is None:
        return "–"
    return f"{estimate['value']:.1%} [{estimate['low']:.1%}, {estimate['high']:.1%}]"


def _number(estimate: Row | None) -> str:
    return "–" if estimate is None else f"{estimate['value']:.3f} [{estimate['low']:.3f}, {estimate['high']:.3f}]"
