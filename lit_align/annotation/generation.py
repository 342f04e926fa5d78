"""Prompts to responses, a few at a time, so that a file that was stopped ends as it would have ended."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from lit_align.annotation.records import Records, Row, begin, digest, settings_file, write_rows
from lit_align.annotation.samplers import Sampler
from lit_align.data import PromptData
from lit_align.data.prompts import PromptCounts
from lit_align.errors import UserError
from lit_align.feedback import Answer
from lit_align.groups import Text

OnChunk = Callable[[int, int], None]
"""Called with the number of rows that are written, and of tokens sampled for the last ones of them."""


def read_texts(name: str, columns: dict[str, str] | None, max_rows: int | None) -> list[Text]:
    """The prompts that `PromptData` would train on, in the order of their rows.

    Raises:
        UserError: A row without a prompt, or none at all.
    """
    counts = PromptCounts("raise")
    data = PromptData(name, max_rows=max_rows, columns=columns)
    texts = [group.prompt for group in data.read(counts)]
    if not texts:
        raise UserError(f"{name} has no prompts.")
    return texts


def settings_of(sampler: Sampler, source: Mapping[str, Any], prompts: Sequence[Text]) -> Row:
    """All that decides what stands in the file of responses."""
    return {"prompts": {**source, "number": len(prompts), "hash": digest(prompts)}, **sampler.settings()}


def working_file(out: Path) -> Path:
    """Where rows stand while there are not yet all of them: JSONL grows in its place, Parquet is written at the end."""
    return out if out.suffix == ".jsonl" else out.with_name(out.name + ".working.jsonl")


def generate_file(sampler: Sampler, prompts: Sequence[Text], settings: Row, out: Path, on_chunk: OnChunk) -> int:
    """Samples what is missing of a file of responses.

    Args:
        sampler: The models.
        prompts: All prompts, of which the first may be answered in the file already.
        settings: As `settings_of`; the file has to be begun with the same.
        out: The file, JSONL or Parquet.
        on_chunk: Told of progress.

    Returns:
        How many rows were there already.

    Raises:
        UserError: The file was begun with other settings, or holds more than it should.
    """
    working = working_file(out)
    if working != out and len({type(prompt) for prompt in prompts}) > 1:
        raise UserError(
            f"{out}: some prompts are text and some are chats, which one column of Parquet cannot hold. Name a .jsonl file."
        )
    begin(out, settings, working, *sampler.beside)
    if working != out and out.exists():
        _remove(working, *sampler.beside)  # a kill may have come between the last two lines below
        return len(prompts)
    records = Records(working)
    there = len(records)
    if there > len(prompts):
        raise UserError(
            f"{working} has {there} rows for {len(prompts)} prompts, so somebody else wrote into it. Remove it."
        )
    on_chunk(there, 0)
    names = [name for name in sampler.names for _ in range(sampler.plan.k)]
    try:
        for answers, tokens in sampler.answers(prompts, there) if there < len(prompts) else ():
            records.append([as_row(row, names) for row in answers])
            on_chunk(len(records), tokens)
    except UserError:
        if not len(records) and not any(file.exists() for file in sampler.beside):
            # Nothing came, so whoever now starts it with other settings mixes nothing.
            for file in (working, settings_file(out)):
                file.unlink()
        raise
    if working != out:
        write_rows(out, records.read())
        _remove(working)
    _remove(*sampler.beside)
    return there


def _remove(*files: Path) -> None:
    for file in files:
        file.unlink(missing_ok=True)


def as_row(answers: Sequence[Answer], models: list[str]) -> Row:
    """The answers to one prompt as a row: `finished` is false of a response that `max_new_tokens` cut."""
    return {
        "prompt": answers[0].prompt,
        "responses": [answer.response for answer in answers],
        "finished": [answer.finished for answer in answers],
        "models": models,
    }
