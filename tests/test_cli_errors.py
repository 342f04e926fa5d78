"""Every kind of mistake in a config or on the command line is one message that names the place and the nearest valid word."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningDataModule, LightningModule, Trainer

from lit_align.cli import Parser, refuse_null
from lit_align.cli_errors import explain, original
from lit_align.errors import UserError

CONFIG = """\
run: runs/group/name
trainer:
  max_epochs: 1
  logger: [{class_path: CSVLogger}]
  callbacks:
    - class_path: ModelCheckpoint
model:
  class_path: DPO
  init_args:
    policy: {path: some/model}
    loss:
      class_path: lit_align.losses.IPO
      init_args: {beta: 0.1}
    optimizer:
      class_path: torch.optim.AdamW
      init_args: {lr: 1.0e-6}
data:
  class_path: PreferenceData
  init_args:
    train: rows.jsonl
"""


@pytest.fixture(scope="module")
def parser() -> Parser:
    """A parser of the arguments that `fit` has."""
    parser = Parser(prog="lit-align", allow_abbrev=False)
    from jsonargparse import ActionConfigFile

    parser.add_argument("-c", "--config", action=ActionConfigFile)
    parser.add_argument("--run", type=str | None, default=None)
    parser.add_lightning_class_args(Trainer, "trainer")
    parser.add_lightning_class_args(LightningModule, "model", subclass_mode=True)
    parser.add_lightning_class_args(LightningDataModule, "data", subclass_mode=True, required=False)
    return parser


@pytest.fixture
def complain(
    parser: Parser, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable:
    """What is printed for CONFIG with `old` replaced by `new`, and these arguments."""
    monkeypatch.chdir(tmp_path)

    def run(old: str = "", new: str = "", *arguments: str) -> str:
        assert old in CONFIG
        Path("a.yaml").write_text(CONFIG.replace(old, new) if old else CONFIG)
        typed = ["--config", "a.yaml", *arguments]
        monkeypatch.setattr(sys, "argv", ["lit-align", "fit", *typed])
        with pytest.raises(SystemExit) as exit_:
            parser.parse_args(typed)
        assert exit_.value.code == 2
        printed = capsys.readouterr().err
        assert printed.startswith("error: ")
        assert printed.count("\n") == 1
        return printed.removeprefix("error: ").rstrip("\n")

    return run


def test_the_config_itself_is_fine(parser: Parser, tmp_path: Path):
    (tmp_path / "a.yaml").write_text(CONFIG)
    config = parser.parse_args(
        ["--config", str(tmp_path / "a.yaml"), "--model.loss.beta", "0.3", "--data.train", "my.jsonl"]
    )
    assert config.model.init_args.loss.init_args.beta == 0.3
    assert config.data.init_args.train == "my.jsonl"
    config = parser.parse_args(
        ["--config", str(tmp_path / "a.yaml"), "--model.loss", "Hinge", "--model.policy.path", "x"]
    )
    assert config.model.init_args.loss.class_path == "lit_align.losses.Hinge"
    assert config.model.init_args.policy.path == "x"


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (
            "max_epochs",
            "max_epoch",
            "a.yaml, line 3: there is no option 'trainer.max_epoch'; did you mean 'trainer.max_epochs'?",
        ),
        ("model:", "modle:", "a.yaml, line 7: there is no option 'modle'; did you mean 'model'?"),
        ("policy:", "polcy:", "a.yaml, line 10: model: DPO has no argument 'polcy'; did you mean 'policy'?"),
        ("path: some", "pth: some", "a.yaml, line 10: model: policy has no argument 'pth'; did you mean 'path'?"),
        ("beta", "betta", "a.yaml, line 13: model.loss: IPO has no argument 'betta'; did you mean 'beta'?"),
        ("lr:", "lrr:", "a.yaml, line 16: model.optimizer: AdamW has no argument 'lrr'; did you mean 'lr'?"),
        (
            "beta: 0.1",
            "alpha: 0.1",
            "a.yaml, line 13: model.loss: IPO has no argument 'alpha'; there are beta, length_average.",
        ),
        (
            "train: rows",
            "trian: rows",
            "a.yaml, line 20: data: PreferenceData has no argument 'trian'; did you mean 'train'?",
        ),
    ],
)
def test_a_misspelt_key(complain: Callable, old: str, new: str, message: str):
    assert complain(old, new) == message


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (": DPO", ": DOP", "a.yaml, line 8: model: there is no class 'DOP'; did you mean 'DPO'?"),
        (
            "losses.IPO",
            "losses.IPOO",
            "a.yaml, line 12: model.loss: lit_align.losses has no 'IPOO'; did you mean 'lit_align.losses.IPO'?",
        ),
        ("lit_align.losses.IPO", "ipo", "a.yaml, line 12: model.loss: there is no class 'ipo'; did you mean 'IPO'?"),
        ("lit_align.losses.IPO", "IOP", "a.yaml, line 12: model.loss: there is no class 'IOP'; did you mean 'IPO'?"),
        (
            "lit_align.losses",
            "lit_align.loses",
            "a.yaml, line 12: model.loss: lit_align has no 'loses'; did you mean 'lit_align.losses'?",
        ),
        (
            "torch.optim.AdamW",
            "AdmW",
            "a.yaml, line 15: model.optimizer: there is no class 'AdmW'; did you mean 'AdamW'?",
        ),
        (
            "torch.optim.AdamW",
            "torch.optim.AdmW",
            "a.yaml, line 15: model.optimizer: torch.optim has no 'AdmW'; did you mean 'torch.optim.AdamW'?",
        ),
        (
            "CSVLogger",
            "CSVLoger",
            "a.yaml, line 4: trainer.logger: there is no class 'CSVLoger'; did you mean 'CSVLogger'?",
        ),
        (
            "ModelCheckpoint",
            "ModelChekpoint",
            "a.yaml, line 6: trainer.callbacks: there is no class 'ModelChekpoint'; did you mean 'ModelCheckpoint'?",
        ),
        (
            ": PreferenceData",
            ": PreferencData",
            "a.yaml, line 18: data: there is no class 'PreferencData'; did you mean 'PreferenceData'?",
        ),
    ],
)
def test_a_misspelt_class(complain: Callable, old: str, new: str, message: str):
    assert complain(old, new) == message


def test_a_loss_of_another_method(complain: Callable):
    told = complain("lit_align.losses.IPO", "KTO")
    assert told.startswith(
        "a.yaml, line 12: model.loss: KTO is of another kind than what goes here; there are DPO, CDPO, "
    )


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (
            "max_epochs: 1",
            "max_epochs: many",
            "a.yaml, line 3: trainer.max_epochs: expected a whole number or null, and got 'many'.",
        ),
        ("beta: 0.1", "beta: high", "a.yaml, line 13: model.loss.beta: expected a number, and got 'high'."),
        ("lr: 1.0e-6", "lr: fast", "a.yaml, line 16: model.optimizer.lr: expected a number or null, and got 'fast'."),
        (
            "some/model}",
            "x, init: randm}",
            "a.yaml, line 10: model.policy.init: 'randm' is not one of pretrained, random; did you mean 'random'?",
        ),
        (
            "max_epochs: 1",
            "precision: fp16",
            "a.yaml, line 3: trainer.precision: 'fp16' is not one of transformer-engine, transformer-engine-float16, 16-true, "
            "16-mixed, bf16-true, bf16-mixed, 32-true, 64-true.",
        ),
        (
            "{path: some/model}",
            "some_model",
            "a.yaml, line 10: model.policy: expected keys and values here, and got 'some_model'.",
        ),
        ("path: some/model", "init: random", "model: policy.path is missing, which DPO needs."),
        ("    train: rows.jsonl", "    seed: 1", "data: train is missing, which PreferenceData needs."),
    ],
)
def test_a_wrong_or_missing_value(complain: Callable, old: str, new: str, message: str):
    assert complain(old, new) == message


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (
            "  class_path: DPO\n",
            "",
            "a.yaml, line 7: model: there is no class_path; say which class it is, for example `class_path: DPO`.",
        ),
        (
            "  class_path: PreferenceData\n  init_args:\n    train",
            "  train",
            "a.yaml, line 17: data: there is no class_path; say which class it is, for example `class_path: PreferenceData`.",
        ),
        (
            "      init_args: {beta: 0.1}",
            "      beta: 0.1",
            "a.yaml, line 11: model.loss: the arguments of a class belong under `init_args:`, beside its `class_path:`.",
        ),
        (
            "lit_align.losses.IPO",
            "torch.optim.SGD",
            "a.yaml, line 12: model.loss: torch.optim.SGD is no subclass of PreferenceLoss.",
        ),
        (
            "lit_align.losses.IPO",
            "lit_align.losses.PreferenceLoss",
            "a.yaml, line 12: model.loss: PreferenceLoss is only the base of what is meant here; name a class below it.",
        ),
        ("class_path: DPO", "class_path: DPO: 3", "a.yaml, line 8 is not YAML: mapping values are not allowed here."),
    ],
)
def test_a_config_of_the_wrong_form(complain: Callable, old: str, new: str, message: str):
    assert complain(old, new) == message


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--trainer.max_epoch", "3"], "there is no option 'trainer.max_epoch'; did you mean 'trainer.max_epochs'?"),
        (["--modl.loss", "IPO"], "there is no option 'modl'; did you mean 'model'?"),
        (["--model.los", "IPO"], "model: DPO has no argument 'los'; did you mean 'loss'?"),
        (["--model.loss", "IPOO"], "model.loss: there is no class 'IPOO'; did you mean 'IPO'?"),
        (["--model.loss.beta", "x"], "model.loss.beta: expected a number, and got 'x'."),
        (
            ["--trainer.callbacks+=EarlyStoping"],
            "trainer.callbacks: there is no class 'EarlyStoping'; did you mean 'EarlyStopping'?",
        ),
        (["rnu"], "there is no option 'rnu'; did you mean 'run'?"),
    ],
)
def test_a_mistake_on_the_command_line(complain: Callable, arguments: list[str], message: str):
    assert complain("", "", *arguments) == f"command line: {message}"


def test_a_config_that_does_not_exist(complain: Callable):
    Path("b.yam.py").touch()
    assert complain("", "", "-c", "b.yaml") == "there is no file b.yaml; did you mean a.yaml?"
    Path("configs/quickstart").mkdir(parents=True)
    Path("configs/quickstart/dpo.yaml").touch()
    assert complain("", "", "-c", "dpo.yaml") == "there is no file dpo.yaml; did you mean configs/quickstart/dpo.yaml?"


def test_the_later_of_two_configs_is_named(complain: Callable):
    Path("b.yaml").write_text("trainer:\n  max_steps: some\n")
    assert complain("", "", "-c", "b.yaml").startswith("b.yaml, line 2: trainer.max_steps: expected a whole number")


def test_an_unknown_form_of_message_is_shown_as_it_is(parser: Parser, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sys, "argv", ["lit-align", "fit"])
    assert explain("Something new.\nWith details", parser) == "Something new."


def test_what_a_constructor_raised_is_found_below_the_report():
    wrapped = ValueError("Does not validate against any of the Union subtypes")
    wrapped.__cause__ = middle = ValueError("Does not validate either")
    middle.__cause__ = user_error = UserError("beta must be positive.")
    user_error.__cause__ = KeyError("what led to it stays where it is")
    assert original(wrapped) is user_error
    bug = KeyError("x")
    assert original(bug) is bug


@dataclass(frozen=True)
class Given:
    """A class of someone's own."""

    needed: float = 0.5
    optional: float | None = 0.5
    anything: Any = 1


def test_null_is_refused_where_a_value_is_needed():
    refuse_null(Given, {"optional": None, "anything": None, "needed": 1.0})
    refuse_null(torch.optim.AdamW, {"params": [], "foreach": None})
    with pytest.raises(UserError, match=r"Given needs a value for 'needed', and the config has null\."):
        refuse_null(Given, {"needed": None})
