"""The embedded tasks by name: data sets that are drawn and never read."""

from __future__ import annotations

from collections.abc import Iterator
from typing import cast

from lit_align.data import mini_assistant, mini_instruct
from lit_align.data.drawn import Kind, Split
from lit_align.data.mini_assistant import Part
from lit_align.data.rows import parse_name
from lit_align.errors import UserError
from lit_align.groups import Group
from lit_align.models.config import EMBEDDED

ROWS: dict[Split, int] = {"train": 10_000, "val": 1_000}
"""How many rows there are if nothing says so."""


def is_embedded(name: str) -> bool:
    """Whether a name of a data set is that of an embedded task, with or without a part of its prompts."""
    return parse_name(name)[0] in EMBEDDED


def embedded_groups(name: str, kind: Kind, rows: int | None, seed: int, split: Split) -> list[Group]:
    """Rows of an embedded task.

    Args:
        name: `mini_instruct`, `mini_assistant`, or a part of the latter's prompts as in `mini_assistant:seed`.
        kind: As in the task's `groups`.
        rows: As there, `ROWS` if not given.
        seed: As there.
        split: As there.

    Raises:
        UserError: The task has no such part.
    """
    task, part = _task_and_part(name)
    if task == "mini_instruct":
        return mini_instruct.groups(kind, rows or ROWS[split], seed, split)
    return mini_assistant.groups(kind, rows or ROWS[split], seed, split, part)


def embedded_prompts(name: str, rows: int | None, split: Split) -> Iterator[Group]:
    """The prompts of an embedded task in a fixed order, over and over, as groups without responses.

    Args:
        name: As in `embedded_groups`.
        rows: How many, `ROWS` if not given.
        split: Says which prompts where the name does not.

    Raises:
        UserError: The task has no such part.
    """
    task, part = _task_and_part(name)
    prompts = mini_instruct.PROMPTS if task == "mini_instruct" else mini_assistant.prompts_of(split, part)
    for number in range(rows or ROWS[split]):
        yield Group(prompts[number % len(prompts)], (), source=f"{name}, row {number + 1}")


def _task_and_part(name: str) -> tuple[str, Part | None]:
    task, configuration, part = parse_name(name)
    if configuration is not None:
        raise UserError(f"{task} has no configurations: leave out the @{configuration}.")
    if part is None:
        return task, None
    if task == "mini_instruct":
        raise UserError(f"mini_instruct has one set of prompts: leave out the :{part}.")
    return task, cast("Part", part)  # the task itself says which parts it has
