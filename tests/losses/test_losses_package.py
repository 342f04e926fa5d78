"""The losses as a package: what a config can name, and what importing them costs."""

from __future__ import annotations

import dataclasses
import inspect
import subprocess
import sys
from abc import ABC

import pytest
from jsonargparse import ArgumentParser

from lit_align import losses
from lit_align.losses import LabelLoss, PreferenceLoss, RankingLoss, RewardLoss, SFTLoss

CONFIGURABLE = [
    (base, loss)
    for base in (SFTLoss, RewardLoss, PreferenceLoss, LabelLoss, RankingLoss)
    for loss in vars(losses).values()
    if inspect.isclass(loss) and issubclass(loss, base) and loss is not base
]


def test_every_loss_is_exported() -> None:
    assert {loss.__name__ for _, loss in CONFIGURABLE} <= set(losses.__all__)
    assert len(CONFIGURABLE) == 30


@pytest.mark.parametrize(("base", "loss"), CONFIGURABLE, ids=lambda kind: kind.__name__)
def test_a_config_names_a_loss_by_its_class_path(base: type[ABC], loss: type[ABC]) -> None:
    parser = ArgumentParser()
    parser.add_argument("--loss", type=base)
    built = parser.instantiate(parser.parse_args([f"--loss=lit_align.losses.{loss.__name__}"])).loss
    assert built == loss()


@pytest.mark.parametrize(("base", "loss"), CONFIGURABLE, ids=lambda kind: kind.__name__)
def test_help_explains_every_hyper_parameter(base: type[ABC], loss: type, capsys: pytest.CaptureFixture[str]) -> None:
    parser = ArgumentParser()
    parser.add_argument("--loss", type=base)
    with pytest.raises(SystemExit):
        parser.parse_args([f"--loss.help=lit_align.losses.{loss.__name__}"])
    text = " ".join(capsys.readouterr().out.split())
    for field in dataclasses.fields(loss):
        after = text.rsplit(f"--loss.{field.name} {field.name.upper()}", 1)[-1].strip()
        assert not after.startswith("(type:")


def test_importing_them_loads_no_framework() -> None:
    check = "import sys, lit_align.losses; print({'lightning', 'transformers', 'datasets'} & set(sys.modules))"
    result = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "set()"
