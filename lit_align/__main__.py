"""The command line: `lit-align <command>`, or `python -m lit_align <command>`.

It only dispatches, and imports nothing heavy itself, so that `--help` answers at once. `fit`, `validate`, `test` and
`predict` are the Trainer's and go to `lit_align.cli`. Every other command is one file in `lit_align/commands/`: the function
of the file's name is the command, its signature are the options, its docstring is the help.
"""

from __future__ import annotations

import ast
import difflib
import gc
import importlib
import inspect
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from lit_align import __version__
from lit_align.errors import UserError

TRAINER_COMMANDS = {
    "fit": "Train, as a config says.",
    "validate": "Measure a checkpoint on the validation rows.",
    "test": "Measure a checkpoint on the test rows.",
    "predict": "Run a module's predict_step over the predict rows.",
}
COMMANDS_FOLDER = Path(__file__).parent / "commands"
USAGE_ERROR, INTERRUPTED, TERMINATED = 2, 130, 143


def main() -> int:
    """Runs the command that `sys.argv` names.

    `sys.argv` is read and never changed: DDP starts its other ranks by running it again.

    Returns:
        The exit code: 0; 2 where the person who typed has something to put right; 130 after Ctrl-C; 143 after
        SIGTERM.
    """
    arguments = sys.argv[1:]
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(overview())  # noqa: T201
        return 0
    if arguments[0] == "--version":
        print(f"lit-align {__version__}")  # noqa: T201
        return 0
    extend_import_path()
    try:
        return dispatch(arguments[0], arguments[1:])
    except UserError as error:
        return refuse(str(error))
    except KeyboardInterrupt:
        return INTERRUPTED


def dispatch(command: str, arguments: list[str]) -> int:
    """Runs one command.

    Raises:
        UserError: There is no such command, or it refused something.
    """
    if command in TRAINER_COMMANDS:
        return run_trainer()
    if command in (files := command_files()):
        return run_function(files[command], arguments)
    raise UserError(unknown(command))


def overview() -> str:
    """The text of `--help`: every command with its first line of help."""
    lines = {**TRAINER_COMMANDS, **{name: first_line(file) for name, file in command_files().items()}}
    width = max(map(len, lines)) + 2
    return "\n".join(
        [
            "usage: lit-align <command> [options]",
            "",
            "Aligns language models with human and AI preferences.",
            "",
            *(f"  {name:<{width}}{line}" for name, line in lines.items()),
            "",
            "lit-align <command> --help lists a command's options.",
            "A first run: lit-align fit --config configs/quickstart/sft.yaml",
        ]
    )


def command_files() -> dict[str, Path]:
    """The files that are commands, by command name."""
    return {file.stem: file for file in sorted(COMMANDS_FOLDER.glob("*.py")) if not file.stem.startswith("_")}


def first_line(file: Path) -> str:
    """The first line of the docstring of the function that the file is named after, without importing the file."""
    command = command_source(file)
    return "" if command is None else (ast.get_docstring(command) or "").partition("\n")[0]


def command_source(file: Path) -> ast.FunctionDef | None:
    """The function that the file is named after, parsed and not imported; None where there is none."""
    for node in ast.parse(file.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.FunctionDef) and node.name == file.stem:
            return node
    return None


def unknown(command: str) -> str:
    """The sentence for a command that does not exist."""
    names = [*TRAINER_COMMANDS, *command_files()]
    near = difflib.get_close_matches(command, names, n=1)
    hint = f"did you mean {near[0]!r}?" if near else f"the commands are {', '.join(names)}."
    return f"There is no command {command!r}; {hint}"


def extend_import_path() -> None:
    """Makes classes of the user's own files importable from the current folder, behind this package's own folders.

    `python -m` has put the current folder first already; there, a user's folder `callbacks` hides ours. Under the script
    it comes last, and hides nothing.
    """
    for folder in (str(Path(__file__).parents[1]), str(Path.cwd())):
        if folder not in sys.path:
            sys.path.append(folder)


@contextmanager
def uncollected() -> Iterator[None]:
    """Imports without garbage collection, which takes a quarter of their time and finds nothing: they make no garbage.

    What they made is left out of every later collection too. In a process that has torch already, as one of tests, nothing
    changes.
    """
    if "torch" in sys.modules or not gc.isenabled():
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


def run_function(file: Path, arguments: list[str]) -> int:
    """Runs a command of `lit_align/commands/`."""
    from jsonargparse import auto_parser

    from lit_align.cli_errors import ShortErrors

    function: Callable[..., None] = getattr(importlib.import_module(f"lit_align.commands.{file.stem}"), file.stem)
    parser = auto_parser(function, parser_class=ShortErrors, prog=f"lit-align {file.stem}")
    options = parser.instantiate(parser.parse_args(spelled(function, arguments)))
    with uncollected():
        for module in imports_of(file):
            importlib.import_module(module)
    function(**{name: value for name, value in options.items() if name != "config"})
    return 0


def imports_of(file: Path) -> list[str]:
    """The modules that a command's function begins by importing, which it does not do before it is called."""
    command = command_source(file)
    begins = [] if command is None else command.body
    return [node.module for node in begins if isinstance(node, ast.ImportFrom) and node.module]


def spelled(function: Callable[..., None], arguments: list[str]) -> list[str]:
    """Arguments as jsonargparse takes them, where people write them otherwise.

    An option that takes a list may be given several times, `--model a --model b`, by the singular of its name, too; one of a
    single letter, `--k`, with a single dash.
    """
    changed = {}
    for name, parameter in inspect.signature(function).parameters.items():
        if len(name) == 1:
            changed[f"-{name}"] = f"--{name}"
        if str(parameter.annotation).startswith("list["):
            changed[f"--{name}"] = changed[f"--{name.removesuffix('s')}"] = f"--{name}+"
    split = [argument.partition("=") for argument in arguments]
    return [changed.get(option, option) + equals + value for option, equals, value in split]


def run_trainer() -> int:
    """Runs a command of the Trainer."""
    with uncollected():
        from lightning.fabric.utilities.exceptions import MisconfigurationException
        from lightning.pytorch.utilities.exceptions import SIGTERMException

        from lit_align.cli import AlignmentCLI

    try:
        AlignmentCLI()
    except SIGTERMException:
        return TERMINATED
    except MisconfigurationException as error:
        raise UserError(str(error)) from error
    finally:
        leave_ranks()
    return 0


def leave_ranks() -> None:
    """Ends the threads of gloo, which Lightning leaves running: an interpreter that ends meanwhile aborts once in a while."""
    import torch.distributed

    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def refuse(message: str) -> int:
    """Prints one message, with the rank where there are several, and returns the exit code."""
    rank = os.environ.get("RANK") or os.environ.get("LOCAL_RANK") or "0"
    sys.stderr.write(f"error{'' if rank == '0' else f' (rank {rank})'}: {message}\n")
    return USAGE_ERROR


if __name__ == "__main__":
    sys.exit(main())
