"""An overview of a data set for people, in the terminal."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import repeat

import numpy as np
from rich.console import Console
from rich.table import Table
from rich.text import Text
from transformers import PreTrainedTokenizerBase

from lit_align.data.counts import Counts
from lit_align.data.encoding import Encoder, Lengths
from lit_align.data.overview import Overview, as_text, histogram
from lit_align.groups import Group

SHOWN = 120
"""Tokens of a prompt or a response that are printed; of longer ones the two ends. Five times as many characters."""

GOOD, BAD, UNKNOWN = "green", "red", "cyan"


def print_rows(overview: Overview, name: str, console: Console) -> None:
    """Prints what was recognised, and what is odd."""
    good = sum(overview.kinds.values())
    table = _table(name, show_header=False)
    table.add_column(style="dim")
    table.add_column()
    for number, (kind, count) in enumerate(overview.kinds.most_common()):
        table.add_row("" if number else "rows", f"{count:,} of the kind {kind}")
    if overview.unread:
        table.add_row("not read", ", ".join(overview.unread))
    if overview.bad.bad:
        table.add_row(
            "bad rows", f"{overview.bad.bad:,}; on_bad_row: skip would leave them out. The first:", style="red"
        )
        for reason in overview.bad.reasons:
            table.add_row("", reason)
    sizes = [f"{k} to {'each prompt' if n == good else _n(n, 'prompt')}" for k, n in sorted(overview.sizes.items())]
    if sizes:
        table.add_row("responses", ", ".join(sizes))
    if overview.labels:
        table.add_row("labels", f"{overview.labels[True]:,} desirable, {overview.labels[False]:,} not")
    for what, count in overview.extras.items():
        table.add_row(what, f"in {_n(count, 'row')}")
    table.add_row("repeated", _repeated(overview, good))
    if good:
        takers = [f"{module} ({_n(count, 'row')}{_ties(overview, module)})" for module, count in overview.takes.items()]
        prompts = [f"PromptData ({_n(len(overview.prompts), 'different prompt')})"] if overview.prompts else []
        table.add_row("good for", ", ".join([*takers, *prompts]))
    console.print(table)


def print_lengths(overview: Overview, unit: str, console: Console) -> None:
    """Prints quantiles of the lengths, and a small histogram of each."""
    console.print()
    table = _table(f"Lengths in {unit}")
    table.add_column()
    for title in ("least", "median", "90%", "99%", "most"):
        table.add_column(title, justify="right", header_style="dim")
    table.add_column("0 to 99%", header_style="dim", no_wrap=True)
    responses = [length for of_row in overview.response_lengths for length in of_row]
    measured = {"prompt": list(overview.prompt_lengths)}
    if responses:
        measured |= {"response": responses, "prompt and longest": overview.longest}
    for what, values in measured.items():
        points = np.quantile(values, (0, 0.5, 0.9, 0.99, 1)).round()
        table.add_row(what, *(f"{int(point):,}" for point in points), histogram(values))
    console.print(table)
    if unit == "characters":
        console.print("Name a --tokenizer for lengths in tokens, and for what would be cut.", style="dim")


def print_cuts(overview: Overview, lengths: Lengths, console: Console) -> None:
    """Prints what would be cut, or dropped instead."""
    prompts, responses, rows = overview.cuts(lengths)
    limit = f"With max_length {lengths.max_length:,}"
    if lengths.max_prompt_length is not None:
        limit += f" and max_prompt_length {lengths.max_prompt_length:,}"
    outcome = "nothing is cut."
    if rows:
        outcome = (
            f"cut on the left: {_n(prompts, 'prompt')}; on the right: {_n(responses, 'response')}. Instead, too_long: drop "
            f"would leave out {_n(rows, 'row')}."
        )
    console.print(f"{limit}: {outcome}")


def print_group(group: Group, tokenizer: PreTrainedTokenizerBase | None, lengths: Lengths, console: Console) -> None:
    """Prints a row as the model will see it, its responses in colour, every other token brighter.

    Green is what is learned to be better, red what is worse, cyan what nothing is said of; what weighs other than 1 is
    underlined.
    """
    console.print(f"\n{group.source}", style="bold")
    colors = _colors(group)
    if tokenizer is None:
        console.print(_characters(as_text(group.prompt), "dim"))
        for number, (response, color) in enumerate(zip(group.responses, colors, strict=True), start=1):
            console.print(_heading(group, number, f"{len(response):,} characters"))
            console.print(_characters(response, color))
        return
    for _, tokens in Encoder(tokenizer, lengths, Counts("skip")).encode([group]):
        console.print(_tokens(tokenizer, tokens.prompt, "dim", "dim", None))
        weights = tokens.weights or repeat(None)
        for number, (ids, color, of_response) in enumerate(
            zip(tokens.responses, colors, weights, strict=False), start=1
        ):
            console.print(_heading(group, number, f"{len(ids):,} tokens"))
            console.print(_tokens(tokenizer, ids, color, f"bright_{color}", of_response))
        return
    console.print("Too long: this row is left out.", style="red")


def _table(title: str, show_header: bool = True) -> Table:
    return Table(
        box=None,
        show_header=show_header,
        title=title,
        title_justify="left",
        title_style="bold",
        padding=(0, 2, 0, 0),
    )


def _repeated(overview: Overview, good: int) -> str:
    prompts = good - len(overview.prompts) if overview.prompts else 0
    repeats = [
        f"the prompt of an earlier row in {_n(prompts, 'row')}" if prompts else "",
        f"a whole earlier row in {_n(overview.repeated, 'row')}" if overview.repeated else "",
        f"the same response twice in {_n(overview.echoes, 'row')}" if overview.echoes else "",
    ]
    return ", ".join(filter(None, repeats)) or "nothing"


def _ties(overview: Overview, module: str) -> str:
    ties = overview.ties[module]
    return f", {_n(ties, 'tie')} dropped" if ties else ""


def _n(count: int, what: str) -> str:
    return f"{count:,} {what}{'' if count == 1 else 's'}"


def _colors(group: Group) -> list[str]:
    if group.labels is not None:
        return [GOOD if label else BAD for label in group.labels]
    if group.scores is None or len(set(group.scores)) == 1:
        return [UNKNOWN] * len(group.responses)
    return [GOOD if score == max(group.scores) else BAD for score in group.scores]


def _heading(group: Group, number: int, length: str) -> Text:
    known = ""
    if group.scores is not None:
        known = f", score {group.scores[number - 1]:g}"
    if group.labels is not None:
        known = f", {'desirable' if group.labels[number - 1] else 'undesirable'}"
    return Text(f"-- response {number}{known}, {length}{'' if group.finished else ', stopped'}", style="dim")


def _characters(text: str, style: str) -> Text:
    end = 5 * SHOWN // 2
    if len(text) <= 2 * end:
        return Text(text, style=style)
    left_out = (f" [... {len(text) - 2 * end:,} characters ...] ", "italic dim")
    return Text.assemble((text[:end], style), left_out, (text[-end:], style))


def _tokens(
    tokenizer: PreTrainedTokenizerBase, ids: Sequence[int], even: str, odd: str, weights: Sequence[float] | None
) -> Text:
    text = Text()
    hidden = len(ids) - SHOWN
    parts = [(0, len(ids))] if hidden <= 0 else [(0, SHOWN // 2), (len(ids) - SHOWN // 2, len(ids))]
    for begin, end in parts:
        if begin:
            text.append(f" [... {hidden:,} tokens ...] ", style="italic dim")
        shown = ""
        for place in range(begin, end):
            # Not token by token: some are parts of a character, others lose the space before them.
            now = tokenizer.decode(ids[begin : place + 1])
            if now.endswith("\ufffd") and place + 1 < end:
                continue
            style = odd if place % 2 else even
            if weights is not None and weights[place] != 1:
                style += " underline"
            text.append(now[len(shown) :], style=style)
            shown = now
    return text
