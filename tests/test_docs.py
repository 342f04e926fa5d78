"""The documentation is true: its code runs, its commands run, its tables list what there is, and its pages fetch nothing."""

from __future__ import annotations

import csv
import importlib
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml

import lit_align.losses
from lit_align import __main__ as dispatcher
from lit_align.data import schema
from lit_align.data.mini_instruct import gold
from lit_align.groups import Group
from lit_align.losses import PreferenceLoss

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
FENCE = re.compile(r"^```(\w+)(?: title=\"([^\"]+)\")?\n(.*?)^```$", re.MULTILINE | re.DOTALL)

TINY = [
    "--trainer.max_steps=2",
    "--trainer.limit_val_batches=1",
    "--trainer.logger=null",
    "--trainer.log_every_n_steps=1",
]
QUIET = ["--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false"]
FEW_ROWS = "--data.max_rows=16"
ON_THIS_MACHINE = [
    "--trainer.accelerator=cpu",
    "--trainer.precision=32-true",
    "--model.policy.path=runs/quickstart/sft/model",
]
"""In place of the GPU and the model of a config for real models."""

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning", "ignore::DeprecationWarning")


class Block(NamedTuple):
    """A fenced block of a page: its language, its title (a file's name) and its text."""

    language: str
    title: str
    text: str


def blocks(text: str) -> list[Block]:
    return [Block(*found.groups(default="")) for found in FENCE.finditer(text)]


def sections(page: str) -> dict[str, str]:
    """The parts of a page by their heading."""
    _, *parts = re.split(r"^## ", (DOCS / page).read_text(encoding="utf-8"), flags=re.MULTILINE)
    return {part.partition("\n")[0]: part.partition("\n")[2] for part in parts}


def commands(text: str) -> Iterator[list[str]]:
    """The arguments of every `python -m lit_align ...` in the shell blocks of a text."""
    for block in blocks(text):
        for line in block.text.replace("\\\n", " ").splitlines() if block.language == "sh" else ():
            words = shlex.split(line, comments=True)
            if words[:3] == ["python", "-m", "lit_align"]:
                yield words[3:]


def made_small(arguments: list[str]) -> list[str]:
    return [*arguments, *TINY, *QUIET, FEW_ROWS] if arguments[0] == "fit" else arguments


class Shell:
    """Runs lit_align in a folder, in this process or in another."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def write(self, text: str) -> None:
        """Writes the blocks of a text that are files of the reader's."""
        for block in blocks(text):
            if block.title and "/" not in block.title:
                (self.folder / block.title).write_text(block.text, encoding="utf-8")
        sys.modules.pop("mine", None)
        importlib.invalidate_caches()

    def run(self, arguments: list[str]) -> int:
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(self.folder)
            patch.setattr(sys, "argv", ["lit-align", *arguments])
            patch.setattr(sys, "path", [str(self.folder), *sys.path])
            patch.setattr(sys, "dont_write_bytecode", True)  # `mine.py` changes faster than its time stamp shows
            try:
                return dispatcher.main()
            except SystemExit as exit_:
                return int(exit_.code or 0)

    def run_apart(self, arguments: list[str]) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "lit_align", *arguments]
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        return subprocess.run(command, cwd=self.folder, env=environment, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def shell(tmp_path_factory: pytest.TempPathFactory, quickstart_models: Path) -> Shell:
    """A folder as a reader's checkout is: with configs, the model that `sft.yaml` trains, here for two steps, and a reward
    model.
    """
    folder = tmp_path_factory.mktemp("reader")
    shutil.copytree(quickstart_models / "reward", folder / "runs/quickstart/reward/model")
    (folder / "configs").symlink_to(ROOT / "configs")
    shell = Shell(folder)
    assert shell.run(made_small(["fit", "--config", "configs/quickstart/sft.yaml"])) == 0
    return shell


def logged(run: Path) -> set[str]:
    """Names of everything that a run has logged."""
    with (run / "metrics.csv").open(newline="") as lines:
        return {name for row in csv.DictReader(lines) for name, value in row.items() if value} - {"epoch", "step"}


EXTENDING = sections("extending.md")


def test_a_loss_of_ones_own_trains_from_a_file_outside_the_package(shell: Shell) -> None:
    shell.write(EXTENDING["A loss"])
    (arguments,) = commands(EXTENDING["A loss"])
    done = shell.run_apart(made_small(arguments))
    assert done.returncode == 0, done.stderr
    config = yaml.safe_load((shell.folder / "runs/mine/softplus/config.yaml").read_text())
    assert config["model"]["init_args"]["loss"] == {
        "class_path": "mine.Softplus",
        "init_args": {"beta": 1.0, "offset": 1.0},
    }
    assert (shell.folder / "runs/mine/softplus/model/model.safetensors").is_file()


def test_rewards_of_ones_own(shell: Shell) -> None:
    text = EXTENDING["A reward"]
    function, settings = text.split("One with settings")
    for part in (function, settings):
        shell.write(part)
        for arguments in commands(part):
            assert shell.run(made_small(arguments)) == 0
    assert "train/reward/mean" in logged(shell.folder / "runs/mine/brevity")
    assert {"train/reward/polite", "train/reward/gold"} <= logged(shell.folder / "runs/mine/two_rewards")


@pytest.mark.parametrize(
    ("section", "run", "names"),
    [
        ("A method", "best_of", {"train/logps/best", "train/logps/others", "val/logps/best"}),
        ("A DataModule", "best_against_worst", {"train/rewards/margin", "val/rewards/accuracy"}),
        ("A callback", "distance", {"eval/weight_distance"}),
    ],
)
def test_what_is_named_by_class_path(shell: Shell, section: str, run: str, names: set[str]) -> None:
    shell.write(EXTENDING[section])
    (arguments,) = commands(EXTENDING[section])
    assert shell.run(made_small(arguments)) == 0
    assert names <= logged(shell.folder / "runs/mine" / run)
    assert (shell.folder / "runs/mine" / run / "model/model.safetensors").is_file()


def test_a_kind_of_row_of_ones_own(monkeypatch: pytest.MonkeyPatch) -> None:
    (block,) = (block for block in blocks(EXTENDING["A kind of row"]) if block.language == "python")
    names: dict[str, Any] = {}
    exec(block.text, names)
    monkeypatch.setattr(schema, "SCHEMAS", (names["VOTES"], *schema.SCHEMAS))
    group = schema.read_group({"question": "Why?", "answers": ["so", "not"], "votes": [2, 5]}, "rows.jsonl, row 1")
    assert group == Group("Why?", ("so", "not"), scores=(2.0, 5.0), source="rows.jsonl, row 1")


def test_a_command_of_ones_own(
    shell: Shell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import lit_align.commands

    (block,) = (block for block in blocks(EXTENDING["A command"]) if block.language == "python")
    (tmp_path / Path(block.title).name).write_text(block.text)
    monkeypatch.setattr(dispatcher, "COMMANDS_FOLDER", tmp_path)
    monkeypatch.setattr(lit_align.commands, "__path__", [*lit_align.commands.__path__, str(tmp_path)])
    rows = [
        {"prompt": "a", "chosen": "b", "rejected": "c"},
        {"prompt": "a", "responses": ["b"] * 3, "scores": [1, 2, 3]},
    ]
    (shell.folder / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (arguments,) = commands(EXTENDING["A command"])
    assert shell.run(arguments) == 0
    assert capsys.readouterr().out == "1 prompts with 2 responses\n1 prompts with 3 responses\n"


@pytest.mark.parametrize("section", ["Your own rows", "Your own model", "Changing a run", "A run that was stopped"])
def test_what_getting_started_says_to_type(shell: Shell, section: str) -> None:
    text = sections("getting-started.md")[section]
    shell.write(text)
    run = list(commands(text))
    assert run
    for arguments in run:
        here = ON_THIS_MACHINE if "dpo_mine.yaml" in arguments else []
        assert shell.run(made_small([*arguments, *here])) == 0, arguments


@pytest.mark.slow
def test_what_the_way_from_prompts_to_preferences_says_to_type(shell: Shell) -> None:
    few = {"generate": ["--max_rows", "64"], "annotate": ["--max_rows", "64"]}
    run = list(commands((DOCS / "annotate.md").read_text(encoding="utf-8")))
    assert {arguments[0] for arguments in run} == {"generate", "annotate", "data", "fit"}
    for arguments in run:
        assert shell.run(made_small([*arguments, *few.get(arguments[0], [])])) == 0, arguments
    rows = [json.loads(line) for line in (shell.folder / "runs/rlaif/selected.jsonl").read_text().splitlines()]
    golds = [(gold(row["prompt"], row["chosen"]), gold(row["prompt"], row["rejected"])) for row in rows]
    assert rows
    assert all(better > worse for better, worse in golds)


def test_every_command_and_config_that_is_named_is_there() -> None:
    known = {*dispatcher.TRAINER_COMMANDS, *dispatcher.command_files(), "count"}  # the last one is the reader's
    for page in (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *DOCS.rglob("*.md")):
        text = page.read_text(encoding="utf-8")
        for arguments in commands(text):
            assert arguments[0] in known, f"{page.name}: {arguments}"
        for config in re.findall(r"configs/[\w/]+\.yaml", text):
            assert (ROOT / config).is_file(), f"{page.name} names {config}"


METHODS = {
    "sft": "sft",
    "reward": "reward",
    "dpo": "dpo",
    "kto": "kto",
    "ppo": "ppo_gold",
    "grpo": "grpo",
    "online_dpo": "online_dpo",
    "rrhf": "rrhf",
    "rrhf_online": "rrhf_online",
    "spa": "spa",
}
PAGES = {"grpo": "ppo", "online_dpo": "online-dpo", "rrhf_online": "rrhf"}
MORE = {
    "spa": [
        "--model.prompts_per_round=[4,4,4]",
        "--data.batch_size=4",
        "--model.seed.epochs=1",
        "--model.seed.data.max_rows=8",
    ]
}
"""Stages so short that the second of two steps is in a round."""


@pytest.mark.parametrize("name", METHODS)
def test_every_metric_that_a_method_logs_is_explained(shell: Shell, name: str) -> None:
    run = f"runs/metrics/{name}"
    config = f"configs/quickstart/{METHODS[name]}.yaml"
    assert shell.run(made_small(["fit", "--config", config, "--run", run, *MORE.get(name, [])])) == 0
    page = "".join((DOCS / "methods" / f"{page}.md").read_text() for page in (PAGES.get(name, name), "index"))
    explained = set(re.findall(r"^\| (.+?) \|", page, re.MULTILINE))
    names = set(chain.from_iterable(re.findall(r"`([^`]+)`", cell) for cell in explained))
    assert {metric.partition("/")[2] for metric in logged(shell.folder / run)} <= names


@pytest.mark.parametrize("page", sorted((DOCS / "methods").glob("*.md")), ids=lambda page: page.stem)
def test_configs_are_quoted_as_they_are(page: Path) -> None:
    def is_part(quoted: Any, whole: Any) -> bool:
        if isinstance(quoted, Mapping):
            return isinstance(whole, Mapping) and all(k in whole and is_part(v, whole[k]) for k, v in quoted.items())
        return bool(quoted == whole)

    for block in blocks(page.read_text()):
        if block.title.startswith("configs/"):
            whole = yaml.safe_load((ROOT / block.title).read_text())
            assert is_part(yaml.safe_load(block.text), whole), f"{page.name} quotes {block.title} wrongly"


def test_every_preference_loss_is_in_the_table() -> None:
    table = dict(re.findall(r"^\| `(\w+)` \|.*\| (yes|no) \|$", (DOCS / "methods/dpo.md").read_text(), re.MULTILINE))
    classes = {name: getattr(lit_align.losses, name) for name in lit_align.losses.__all__}
    losses = {
        name: "yes" if kind.needs_reference else "no"
        for name, kind in classes.items()
        if issubclass(kind, PreferenceLoss) and kind is not PreferenceLoss
    }
    assert table == losses


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built pages; a page without a place in the navigation, a link or an anchor that leads nowhere fails the build."""
    pytest.importorskip("material", reason="the extra `docs` is not installed")
    folder = tmp_path_factory.mktemp("site")
    build = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)]
    done = subprocess.run(build, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return folder


def test_pages_fetch_nothing(site: Path) -> None:
    fetched = re.compile(
        r"<(?:script|img|iframe|source)[^>]+src=[\"']?(?:https?:)?//|<link[^>]+href=[\"']?(?:https?:)?//"
    )
    pages = sorted(site.rglob("*.html"))
    assert len(pages) >= len(list(DOCS.rglob("*.md")))
    for page in pages:
        assert not (found := fetched.search(page.read_text(encoding="utf-8"))), f"{page.name}: {found}"
        assert "mermaid" not in page.read_text(encoding="utf-8")  # Material takes it from a CDN
