"""`lit-align data`."""

from __future__ import annotations

from lit_align.errors import UserError


def data(
    rows: str,
    tokenizer: str | None = None,
    max_length: int | None = None,
    max_prompt_length: int | None = None,
    columns: dict[str, str] | None = None,
    max_rows: int | None = None,
    show: int = 3,
    chat_template: str | None = None,
) -> None:
    """Show what a data set holds, and what training would make of it.

    The kind of its rows and the columns that are read, bad and repeated rows, lengths, what would be cut, and the first rows
    as the model will see them. Nothing is written.

    Args:
        rows: A .jsonl, .json, .csv or .parquet file, a folder of them or one that `datasets` saved, or a hub name.
        tokenizer: Folder, hub name or embedded task. Without one, lengths are in characters and nothing can be said of cuts.
        max_length: Tokens of a prompt and any one of its responses together, as in a DataModule. 1024 if not given.
        max_prompt_length: Tokens of a prompt, as in a DataModule.
        columns: Names for rows whose columns go by others, as in a DataModule.
        max_rows: Looks at the first so many rows only.
        show: How many rows to print.
        chat_template: A Jinja file that replaces the tokenizer's chat template, as in `model.policy`.
    """
    from rich.console import Console
    from transformers.utils.logging import disable_progress_bar

    from lit_align.data.embedded import is_embedded
    from lit_align.data.encoding import Lengths
    from lit_align.data.overview import survey
    from lit_align.data.overview_show import print_cuts, print_group, print_lengths, print_rows
    from lit_align.models import ModelConfig, load_tokenizer

    if is_embedded(rows):
        raise UserError(f"{rows} is drawn when training starts, and no file: there is nothing to look into.")
    if tokenizer is None and (max_length is not None or max_prompt_length is not None):
        raise UserError("max_length and max_prompt_length count tokens: name a --tokenizer, or leave them out.")
    if tokenizer is None and chat_template is not None:
        raise UserError("chat_template is a tokenizer's: name a --tokenizer, or leave it out.")
    disable_progress_bar()
    settings = None if tokenizer is None else ModelConfig(path=tokenizer, init="random", chat_template=chat_template)
    loaded = None if settings is None else load_tokenizer(settings)
    lengths = Lengths(max_length or 1024, max_prompt_length)
    console = Console(highlight=False)
    with console.status(f"reading {rows}"):
        overview = survey(rows, columns, loaded, max_rows, show)
    print_rows(overview, rows, console)
    if not overview.prompt_lengths:
        raise UserError(f"No row of {rows} can be used.")
    print_lengths(overview, "characters" if loaded is None else "tokens", console)
    if loaded is not None:
        print_cuts(overview, lengths, console)
    for group in overview.first:
        print_group(group, loaded, lengths, console)
