"""Judges and rewards from what is typed: a class, JSON, or a YAML file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from lit_align.cli_errors import ShortErrors
from lit_align.errors import UserError
from lit_align.feedback import Judge, RewardSource


def build_judge(specification: str) -> tuple[Judge, Any]:
    """A judge, as `_build`."""
    return _build(specification, Judge, "judge")


def build_reward(specification: str, option: str) -> tuple[RewardSource, Any]:
    """A reward, as `_build`."""
    return _build(specification, RewardSource, option)


def _build(specification: str, base: Any, option: str) -> tuple[Any, Any]:
    """An object of a class that is named as configs name classes.

    Args:
        specification: `{class_path: ..., init_args: {...}}` as YAML or JSON, a file with it, or a class's name alone.
        base: What the class derives from.
        option: The option that it was typed behind, for error messages.

    Returns:
        The object, and the specification with every default filled in, as plain values.

    Raises:
        UserError: There is no such file, or it is no YAML.
    """
    value = _parsed(specification, option)
    parser = ShortErrors(exit_on_error=True)
    parser.add_argument(f"--{option}", type=base)
    config = parser.parse_object({option: value})
    filled = yaml.safe_load(parser.dump(config))[option]
    return parser.instantiate(config)[option], filled


def _parsed(specification: str, option: str) -> Any:
    text = specification
    if Path(specification).suffix in (".yaml", ".yml", ".json"):
        if not Path(specification).is_file():
            raise UserError(f"--{option}: there is no file {specification!r}.")
        text = Path(specification).read_text(encoding="utf-8")
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        reason = " ".join(str(error).split())
        raise UserError(f"--{option}: {specification!r} is no YAML: {reason}") from error
