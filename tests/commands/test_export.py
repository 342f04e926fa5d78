"""A run's checkpoint becomes a Hugging Face folder, and nothing else is touched."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM, AutoTokenizer

from lit_align.commands.export import export
from lit_align.errors import UserError
from lit_align.methods import SFT
from lit_align.models import ModelConfig


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run of the packaged model, with two checkpoints whose weights differ."""
    folder = tmp_path / "runs" / "g" / "sft"
    (folder / "checkpoints").mkdir(parents=True)
    policy = {"path": "mini_instruct", "init": "random"}
    config = {"run": str(folder), "model": {"class_path": "lit_align.methods.SFT", "init_args": {"policy": policy}}}
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    for seed, name in enumerate(["step=1.ckpt", "last.ckpt"]):
        torch.manual_seed(seed)
        module = SFT(ModelConfig(**policy))
        module.configure_model()
        torch.save({"state_dict": module.state_dict(), "global_step": seed}, folder / "checkpoints" / name)
    return folder


def exported(folder: Path) -> dict[str, torch.Tensor]:
    AutoTokenizer.from_pretrained(folder)
    return AutoModelForCausalLM.from_pretrained(folder).state_dict()


def weights(checkpoint: Path) -> dict[str, torch.Tensor]:
    state = torch.load(checkpoint, weights_only=True)["state_dict"]
    return {name.removeprefix("policy."): value for name, value in state.items()}


def test_the_last_checkpoint_unless_another_is_named(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    export(run, tmp_path / "a")
    torch.testing.assert_close(exported(tmp_path / "a"), weights(run / "checkpoints" / "last.ckpt"))
    assert capsys.readouterr().out == f"Written: {tmp_path / 'a'}, from {run / 'checkpoints' / 'last.ckpt'}\n"
    export(run, tmp_path / "b", ckpt="step=1.ckpt")
    export(run, tmp_path / "c", ckpt=str(run / "checkpoints" / "step=1.ckpt"))
    export(run / "checkpoints" / "step=1.ckpt", tmp_path / "d")
    for name in "bcd":
        torch.testing.assert_close(exported(tmp_path / name), weights(run / "checkpoints" / "step=1.ckpt"))


def test_what_is_there_is_not_overwritten(run: Path, tmp_path: Path):
    (tmp_path / "out").mkdir()
    with pytest.raises(UserError, match=r"out exists already"):
        export(run, tmp_path / "out")


def test_what_is_missing_is_a_sentence(run: Path, tmp_path: Path):
    out = tmp_path / "out"
    with pytest.raises(UserError, match=r"There is no checkpoint .*checkpoints/best"):
        export(run, out, ckpt="best")
    with pytest.raises(UserError, match=r"g is no run folder: it has no config\.yaml"):
        export(run.parent, out)
    with pytest.raises(UserError, match=r"is a checkpoint already, so `--ckpt step=1\.ckpt` has no effect"):
        export(run / "checkpoints" / "last.ckpt", out, ckpt="step=1.ckpt")
    (run / "checkpoints" / "last.ckpt").unlink()
    with pytest.raises(UserError, match=r"There is no .*last\.ckpt; the newest whole checkpoint is .*step=1\.ckpt"):
        export(run, out)
    assert not out.exists()


class Code:
    """What no checkpoint should hold."""


@pytest.mark.parametrize("content", [b"", b"no checkpoint", "code", "no weights"])
def test_a_file_that_is_no_checkpoint_is_refused_and_not_run(run: Path, tmp_path: Path, content: bytes | str):
    file = run / "checkpoints" / "bad.ckpt"
    if isinstance(content, bytes):
        file.write_bytes(content)
    else:
        torch.save({"state_dict": {"x": Code()}} if content == "code" else {"epoch": 1}, file)
    with pytest.raises(UserError, match=r"bad\.ckpt is no (whole checkpoint|checkpoint that can be read safely)"):
        export(run, tmp_path / "out", ckpt="bad.ckpt")


def test_weights_of_another_model_are_refused(run: Path, tmp_path: Path):
    torch.save({"state_dict": {"policy.other": torch.zeros(1)}}, run / "checkpoints" / "other.ckpt")
    with pytest.raises(UserError, match=r"other\.ckpt are not those of the SFT in .*config\.yaml"):
        export(run, tmp_path / "out", ckpt="other.ckpt")


def test_a_config_without_a_model_is_refused(run: Path, tmp_path: Path):
    (run / "config.yaml").write_text("run: a\n")
    with pytest.raises(UserError, match=r"has no `model`, so it is not the config of a run"):
        export(run, tmp_path / "out")


def test_a_module_that_cannot_export_is_refused(run: Path, tmp_path: Path):
    (run / "config.yaml").write_text("model: {class_path: lightning.pytorch.demos.boring_classes.BoringModel}\n")
    with pytest.raises(UserError, match=r"BoringModel has no method `export\(folder\)`"):
        export(run, tmp_path / "out")
