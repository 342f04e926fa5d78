"""Arrows go down only: what each room of the package may import."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "lit_align"

ROOMS = (
    "errors",
    "groups",
    "exact",
    "losses",
    "runtime",
    "models",
    "data",
    "rollout",
    "feedback",
    "methods",
    "nearest",
    "report",
    "cli_errors",
    "cli",
    "plan",
    "annotation",
    "commands",
    "__main__",
)
"""From the bottom up: a room imports from those before it, and from itself."""

PURE = ("errors", "groups", "losses")
"""Rooms of plain maths, which can be read and tested without any of the libraries around torch."""


def room_of(file: Path) -> str:
    return file.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported(file: Path) -> Iterator[str]:
    """Full names of all modules that a file imports, wherever in it."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.module is not None, f"{file} imports relatively, line {node.lineno}"
            assert node.level == 0, f"{file} imports relatively, line {node.lineno}"
            whole_package = node.module == "lit_align"
            yield from (f"lit_align.{alias.name}" for alias in node.names) if whole_package else [node.module]


FILES = sorted(PACKAGE.rglob("*.py"))


@pytest.mark.parametrize("room", sorted({room_of(file) for file in FILES} - {"__init__"}))
def test_a_room_imports_from_those_below_it_only(room: str) -> None:
    assert room in ROOMS, f"{room} is new: give it a place in ROOMS, and in docs/architecture.md."
    below = {*ROOMS[: ROOMS.index(room) + 1], "__version__"}
    for file in (file for file in FILES if room_of(file) == room):
        for name in imported(file):
            if name.startswith("lit_align."):
                assert name.split(".")[1] in below, (
                    f"{file.relative_to(PACKAGE)} imports {name}, which is above {room}."
                )


def test_the_package_never_imports_callbacks() -> None:
    for file in FILES:
        assert "callbacks" not in {name.partition(".")[0] for name in imported(file)}, file


@pytest.mark.parametrize("room", PURE)
def test_maths_imports_torch_alone(room: str) -> None:
    for file in (file for file in FILES if room_of(file) == room):
        roots = {name.partition(".")[0] for name in imported(file)} - sys.stdlib_module_names
        assert roots <= {"torch", "lit_align"}, f"{file.relative_to(PACKAGE)} imports {sorted(roots)}"
        ours = {name.split(".")[1] for name in imported(file) if name.startswith("lit_align.")}
        assert ours <= set(PURE), f"{file.relative_to(PACKAGE)} imports {sorted(ours)}"
