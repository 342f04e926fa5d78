"""`lit-align annotate`."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Literal

from lit_align.errors import UserError


def annotate(
    responses: str,
    out: Path = Path("preferences.jsonl"),
    judge: list[str] | None = None,
    reward: str | None = None,
    kind: Literal["preferences", "rankings", "scores"] = "preferences",
    pairs: Literal["first", "all", "best_worst"] | None = None,
    select: Literal["uniform", "disagreement", "thompson"] | None = None,
    budget: int | None = None,
    ensemble: list[str] | None = None,
    seed: int | None = None,
    drop_cut: bool = False,
    batch_size: int = 16,
    device: str = "cpu",
    columns: dict[str, str] | None = None,
    max_rows: int | None = None,
) -> None:
    """Have responses compared or scored, into a file that trains.

    Judges and rewards are named as configs name classes: `{class_path: ..., init_args: {...}}`, a YAML or JSON file with
    that, or a class's name alone. Each verdict stands in `<out>.verdicts.jsonl` as soon as it is given; killed and started
    again, none is asked for twice. Agreement, ties and position bias stand in `<out>.report.json`.

    Args:
        responses: Rows with two responses or more: what `generate` wrote, or rows of any kind with several.
        out: The file to write, .jsonl or .parquet.
        judge: What compares two responses. Given several times, the mean of the judges is the label.
        reward: What scores one response, instead of judges.
        kind: `preferences` are pairs, with the probability of the preference beside them; `rankings` and `scores` have all
            responses of a row, by the reward or by the mean probability of winning against each of the others.
        pairs: Which pairs of a row are compared for preferences: the `first` two responses (the default), `all` pairs, or
            `best_worst`, by the reward or by scores that the rows have.
        select: Compares only some of all pairs of all rows: random ones (`uniform`), those an ensemble disagrees about most
            (`disagreement`), or those that double Thompson sampling names (`thompson`).
        budget: How many pairs to select.
        ensemble: A reward that the selection asks, named like `reward`. Give it twice or more.
        seed: Of the selection.
        drop_cut: Leaves out responses that a length limit cut. Training would teach that they end there.
        batch_size: Rows that are judged at once, and lost if the process dies before they are through.
        device: Where models of judges and rewards run.
        columns: Names for rows whose columns go by others, as in a DataModule.
        max_rows: Reads only so many rows.
    """
    from rich.console import Console
    from transformers.utils.logging import disable_progress_bar

    from lit_align.annotation.annotation import Raters, annotate_file, report_file
    from lit_align.annotation.build import build_judge, build_reward
    from lit_align.annotation.candidates import read_candidates
    from lit_align.annotation.request import Request
    from lit_align.annotation.show import print_report, progress

    if bool(judge) == bool(reward):
        raise UserError("Name a --judge that compares or a --reward that scores, and not both.")
    disable_progress_bar()
    request = Request(kind, len(judge or ()), pairs, select, budget, len(ensemble or ()), seed, batch_size)
    raters = Raters(
        [build_judge(text) for text in judge or ()],
        build_reward(reward, "reward") if reward else None,
        [build_reward(text, "ensemble") for text in ensemble or ()],
    )
    for judging, _ in raters.judges:
        judging.to(device)
    for scoring, _ in [*raters.ensemble, *([raters.reward] if raters.reward else [])]:
        scoring.to(device)
    rows, reading = read_candidates(responses, columns, max_rows, drop_cut)
    source = {"rows": responses, "columns": columns, "drop_cut": drop_cut}
    console = Console(highlight=False)
    bar = partial(progress, console=console, unit="verdicts/s")
    said = annotate_file(rows, source, reading, request, raters, out, bar)
    print_report(said, console, drop_cut)
    console.print(f"Written: {out}, {said['written']:,} rows; statistics: {report_file(out)}", soft_wrap=True)
