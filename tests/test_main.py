"""The dispatcher: what it lists, what it refuses, and what it returns."""

from __future__ import annotations

import gc
import subprocess
import sys
import time
from contextlib import nullcontext
from pathlib import Path

import pytest
from lightning.pytorch.utilities.exceptions import SIGTERMException

import lit_align.cli
from lit_align import __main__ as dispatcher
from lit_align.errors import UserError


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch):
    """`main()` with these arguments, its exit code returned."""

    def run(*arguments: str) -> int:
        monkeypatch.setattr(sys, "argv", ["lit-align", *arguments])
        monkeypatch.setattr(sys, "path", list(sys.path))
        try:
            return dispatcher.main()
        except SystemExit as exit_:
            return int(exit_.code or 0)
        finally:
            assert sys.argv == ["lit-align", *arguments]  # DDP runs it again

    return run


@pytest.fixture
def hello(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A commands folder with one command in it, as a new file would add it."""
    (tmp_path / "hello.py").write_text(
        '"""Not this line."""\nimport json\n\n\ndef helper() -> None:\n    """Nor this."""\n\n\n'
        'def hello(name: str, times: int = 1) -> None:\n    """Greet somebody.\n\n    At length.\n    """\n'
        "    print('hello', name, times)\n"
    )
    (tmp_path / "_private.py").write_text("raise RuntimeError\n")
    monkeypatch.setattr(dispatcher, "COMMANDS_FOLDER", tmp_path)
    import lit_align.commands

    monkeypatch.setattr(lit_align.commands, "__path__", [*lit_align.commands.__path__, str(tmp_path)])
    return tmp_path


def test_help_lists_every_command_at_once_and_without_torch():
    started = time.monotonic()
    code = "import sys; sys.argv = ['x', '--help']; from lit_align.__main__ import main; main(); print('torch' in sys.modules)"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert time.monotonic() - started < 5  # a twentieth of a second on an idle machine
    assert shown.splitlines()[-1] == "False"
    for command in ("fit", "validate", "test", "predict", "compare", "export"):
        assert any(line.split()[:1] == [command] and len(line.split()) > 3 for line in shown.splitlines()), command


def test_the_help_of_fit_imports_no_more_than_the_trainer_needs():
    code = """
import gc, sys
sys.argv = ['x', 'fit', '--help']
from lit_align.__main__ import main
try:
    main()
finally:
    heavy = {'datasets', 'pandas', 'peft', 'pyarrow', 'scipy', 'sklearn', 'vllm', 'wandb'}
    print(gc.isenabled(), gc.get_freeze_count() > 200_000, sorted(heavy & set(sys.modules)))
"""
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert shown.splitlines()[-1] == "True True []"


@pytest.mark.parametrize("fails", [False, True])
def test_imports_are_not_collected_and_what_comes_after_them_is(fails: bool, monkeypatch: pytest.MonkeyPatch):
    frozen: list[bool] = []
    monkeypatch.delitem(sys.modules, "torch")
    monkeypatch.setattr(gc, "freeze", lambda: frozen.append(gc.isenabled()))
    with pytest.raises(ImportError) if fails else nullcontext(), dispatcher.uncollected():
        assert not gc.isenabled()
        if fails:
            raise ImportError
    assert gc.isenabled()
    assert frozen == [False]


def test_a_program_that_has_torch_already_keeps_its_collector():
    before = gc.get_freeze_count()
    with dispatcher.uncollected():
        assert gc.isenabled()
    assert gc.get_freeze_count() == before


def test_the_imports_of_a_command_are_those_it_begins_with(hello: Path):
    assert dispatcher.imports_of(hello / "hello.py") == []
    assert "lit_align.data.overview" in dispatcher.imports_of(
        Path(lit_align.cli.__file__).parent / "commands" / "data.py"
    )
    (hello / "late.py").write_text(
        "from os import path\n\n\ndef late(text: str) -> None:\n"
        "    from json import dumps\n\n    if text:\n        from nowhere import x\n    print(dumps(text))\n"
    )
    assert dispatcher.imports_of(hello / "late.py") == ["json"]


def test_a_new_file_is_a_new_command(call, hello, capsys: pytest.CaptureFixture[str]):
    assert call() == 0
    assert "hello     Greet somebody.\n" in capsys.readouterr().out
    assert call("hello", "you", "--times", "2") == 0
    assert capsys.readouterr().out == "hello you 2\n"
    assert call("hello", "--help") == 0
    assert capsys.readouterr().out.startswith("usage: lit-align hello")


def test_a_commands_own_mistakes_are_one_line(call, hello, capsys: pytest.CaptureFixture[str]):
    assert call("hello") == 2
    assert capsys.readouterr().err == "error: name is missing.\n"
    assert call("hello", "you", "--times", "often") == 2
    assert capsys.readouterr().err == "error: command line: times: expected a whole number, and got 'often'.\n"
    assert call("hello", "you", "--tims", "2") == 2
    assert capsys.readouterr().err == "error: command line: there is no option 'tims'; did you mean 'times'?\n"


@pytest.mark.parametrize(
    ("typed", "meant"),
    [("fti", "did you mean 'fit'?"), ("comapre", "did you mean 'compare'?"), ("zzz", "the commands are")],
)
def test_an_unknown_command_names_the_nearest(call, typed: str, meant: str, capsys: pytest.CaptureFixture[str]):
    assert call(typed) == 2
    assert capsys.readouterr().err.startswith(f"error: There is no command {typed!r}; {meant}")


@pytest.mark.parametrize("rank", ["", "3"])
def test_what_a_person_can_put_right_is_one_line_and_code_2(
    call, rank: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    def fail() -> None:
        raise UserError("rows.jsonl, row 3: prompt is empty.")

    monkeypatch.setattr(lit_align.cli, "AlignmentCLI", fail)
    monkeypatch.setenv("RANK", rank)
    assert call("fit") == 2
    assert capsys.readouterr().err == f"error{' (rank 3)' if rank else ''}: rows.jsonl, row 3: prompt is empty.\n"


def test_a_bug_keeps_its_traceback(call, monkeypatch: pytest.MonkeyPatch):
    def fail() -> None:
        raise ValueError("a bug")

    monkeypatch.setattr(lit_align.cli, "AlignmentCLI", fail)
    with pytest.raises(ValueError, match="a bug"):
        call("fit")


@pytest.mark.parametrize(("signal", "code"), [(SIGTERMException, 143), (KeyboardInterrupt, 130)])
def test_a_signal_is_its_exit_code(call, monkeypatch: pytest.MonkeyPatch, signal: type[BaseException], code: int):
    def stop() -> None:
        raise signal

    monkeypatch.setattr(lit_align.cli, "AlignmentCLI", stop)
    assert call("fit") == code


def test_the_current_folder_is_importable_behind_ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", ["elsewhere"])
    dispatcher.extend_import_path()
    assert sys.path == ["elsewhere", str(Path(dispatcher.__file__).parents[1]), str(tmp_path)]
