"""Where a word was probably meant to be another, and where a user's folder hides ours."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from lit_align import nearest
from lit_align.nearest import argument_names, class_names, did_you_mean, field_names, shadowed


def test_the_nearest_name_or_all_of_a_few():
    assert did_you_mean("epoch", ["epochs", "steps"]) == "; did you mean 'epochs'?"
    assert did_you_mean("zzz", ["epochs", "steps"]) == "; there are epochs, steps"
    assert did_you_mean("zzz", ["epochs"]) == "; there is epochs"
    assert did_you_mean("simpo", ["DPO", "SimPO"]) == "; did you mean 'SimPO'?"
    assert did_you_mean("zzz", [str(number) * 9 for number in range(25)]) == ""
    assert did_you_mean("zzz", []) == ""


def test_arguments_of_a_class_are_those_of_its_bases_too():
    assert {"train", "batch_size"} <= set(argument_names("lit_align.data.PreferenceData"))
    assert argument_names("torch.optim.AdamW")[:3] == ["params", "lr", "betas"]
    assert "path" in field_names("lit_align.methods.DPO", "policy")
    assert "warmup" in field_names("lit_align.methods.DPO", "lr_scheduler")
    assert field_names("lit_align.methods.DPO", "optimizer") == []


def test_classes_are_those_that_the_argument_takes():
    losses = class_names("model.loss", "lit_align.methods.DPO")
    assert {"DPO", "SimPO"} <= set(losses)
    assert not {"KTO", "NLL", "PreferenceLoss"} & set(losses)
    assert "FrozenReference" in class_names("model.reference", "lit_align.methods.DPO")
    assert "AdamW" in class_names("model.optimizer", "lit_align.methods.DPO")
    assert "CosineAnnealingLR" in class_names("model.lr_scheduler", "lit_align.methods.DPO")
    assert "PreferenceData" in class_names("data")


class Annotated:
    def __init__(self, loss: OnlyForTypeCheckers, beta: float) -> None:  # noqa: F821
        """Like a class of a user's own file, whose imports for annotations are not there when it runs."""


def test_annotations_that_are_not_there_leave_all_names():
    class_path = f"{__name__}.Annotated"
    assert field_names(class_path, "loss") == []
    assert "SimPO" in class_names("model.loss", class_path)


@pytest.mark.parametrize("ours_first", [True, False])
def test_a_hidden_callbacks_package_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ours_first: bool):
    home, mine = tmp_path / "home", tmp_path / "mine"
    for folder in (home, mine):
        (folder / "callbacks").mkdir(parents=True)
        (folder / "callbacks" / "__init__.py").touch()
    monkeypatch.setattr(nearest, "HOME", home)
    monkeypatch.delitem(sys.modules, "callbacks", raising=False)
    monkeypatch.setattr(sys, "path", [str(folder) for folder in ([home, mine] if ours_first else [mine, home])])
    told = shadowed("callbacks.kl")
    assert ("hides lit_align's callbacks" in told) is not ours_first
    assert ("start the script `lit-align` instead" in told) is not ours_first
    assert shadowed("torch.optim") == ""
