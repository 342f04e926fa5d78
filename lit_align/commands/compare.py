"""`lit-align compare`."""

from __future__ import annotations

from pathlib import Path


def compare(group: Path) -> None:
    """Compare the runs of a group: a table, report.json, frontier.png, and report.html to look at it all.

    Runs on mini_instruct are measured exactly: expected gold score, KL from the reference, the best that is possible at that
    KL, win rate against the reference, a reward model's accuracy. Policies trained on mini_assistant are measured on samples:
    gold score and KL with standard errors, and the skills that alignment may cost. Of runs that are not measured exactly it
    shows what they logged last. The page also has who wins how often against whom, the training curves, responses and
    configs, in one file that needs no network.

    Args:
        group: The folder that holds the runs, for example runs/quickstart.
    """
    import json

    import torch
    from rich.console import Console
    from transformers.utils.logging import disable_progress_bar

    from lit_align.report import compare_exactly, read_group
    from lit_align.report.html import write_page
    from lit_align.report.sampled import measure_samples, print_sampled, sampled_win_rates
    from lit_align.report.show import draw_frontier, logged, print_metrics, print_table

    disable_progress_bar()
    torch.set_num_threads(1)  # models this small lose more to the threads' waiting for each other than they gain
    console = Console()
    runs = read_group(group)
    with console.status("reading") as status:
        comparison = compare_exactly(runs, lambda what: status.update(f"{what} (some seconds)"))
        sampled = measure_samples(runs, lambda what: status.update(f"{what} (some seconds)"), comparison.remarks)
    exact = [run for run in runs if run.trains_on_mini_instruct]
    others = [run for run in runs if run not in exact]
    if exact:
        print_table(comparison, console)
    if sampled:
        print_sampled(sampled, console)
    if others:
        print_metrics(others, console)
    silent = [f"{run.name} has logged nothing yet." for run in others if not logged(run)]
    for remark in comparison.remarks + silent:
        console.print(f"Note: {remark}", highlight=False)
    written = [group / "report.json"]
    measured = comparison.as_dict()
    if sampled:
        measured["sampled"] = [result.as_dict() for result in sampled]
        measured["sampled_win_rates"] = sampled_win_rates(sampled)
    written[0].write_text(json.dumps(measured, indent=2) + "\n", encoding="utf-8")
    if comparison.frontier:
        written.append(group / "frontier.png")
        draw_frontier(comparison, written[-1])
    written.append(group / "report.html")
    write_page(group, runs, comparison, written[-1], sampled)
    console.print(f"Written: {', '.join(map(str, written))}", highlight=False, soft_wrap=True)
