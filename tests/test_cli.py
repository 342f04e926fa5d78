"""Whole runs by the command line: the run folder they leave, continuing them, replacing them, and what is refused."""

from __future__ import annotations

import csv
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml

from lit_align import __main__ as dispatcher
from lit_align.cli import without_secrets
from lit_align.errors import UserError

OWN_FILE = '''
from pathlib import Path

import torch
from lightning.pytorch import Callback, LightningDataModule, LightningModule
from torch.utils.data import DataLoader, TensorDataset

from lit_align.errors import UserError
from lit_align.losses import PreferenceLoss


class OwnLoss(torch.nn.Module):
    """A loss of the user's own.

    Args:
        scale: What the loss is multiplied by.
    """

    def __init__(self, scale: float = 1.0) -> None:
        super().__init__()
        if scale < 0:
            raise UserError("scale must not be negative.")
        if scale == 13:
            raise ZeroDivisionError("a bug")
        self.scale = scale

    def forward(self, x):
        return self.scale * x.square().mean()


class Line(LightningModule):
    def __init__(self, loss: torch.nn.Module = OwnLoss(), lr: float = 0.1, api_key: str | None = None) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(1, 1)
        self.loss, self.lr = loss, lr

    def training_step(self, batch, index):
        loss = self.loss(self.layer(batch[0]))
        self.log("train/loss", loss)
        return loss

    def validation_step(self, batch, index):
        self.log("val/loss", self.loss(self.layer(batch[0])))

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), self.lr)

    def export(self, folder):
        if self.global_rank == 0:
            Path(folder).mkdir(exist_ok=True)
            torch.save(self.layer.state_dict(), Path(folder) / "weights.pt")


class Rows(LightningDataModule):
    def __init__(self, rows: int = 6) -> None:
        super().__init__()
        self.rows = rows

    def train_dataloader(self):
        return DataLoader(TensorDataset(torch.ones(self.rows, 1)), batch_size=1)

    val_dataloader = train_dataloader


class Say(Callback):
    def on_train_start(self, trainer, module):
        print("own callback", [type(callback).__name__ for callback in trainer.callbacks])
'''

CONFIG = """\
run: runs/g/a
trainer:
  accelerator: cpu
  devices: 1
  max_epochs: 2
  log_every_n_steps: 1
  enable_progress_bar: false
  enable_model_summary: false
  logger: [{class_path: CSVLogger}]
  callbacks:
    - class_path: own_classes.Say
    - class_path: ModelCheckpoint
      init_args: {save_last: true, every_n_train_steps: 5, save_top_k: -1}
model:
  class_path: own_classes.Line
  init_args:
    loss: {class_path: own_classes.OwnLoss, init_args: {scale: 0.5}}
data: {class_path: own_classes.Rows}
"""

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning", "ignore::DeprecationWarning")


@pytest.fixture
def fit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """`lit-align COMMAND --config c.yaml ...` in this process, in a folder with a file of the user's own classes."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delitem(sys.modules, "own_classes", raising=False)
    Path("own_classes.py").write_text(OWN_FILE)
    Path("c.yaml").write_text(CONFIG)

    def run(*arguments: str, command: str = "fit", config: str = "c.yaml") -> int:
        monkeypatch.setattr(sys, "argv", ["lit-align", command, "--config", config, *arguments])
        try:
            return dispatcher.main()
        except SystemExit as exit_:
            return int(exit_.code or 0)

    return run


def rows() -> list[dict[str, str]]:
    with Path("runs/g/a/metrics.csv").open(newline="") as lines:
        return list(csv.DictReader(lines))


def test_a_run_is_a_folder(fit: Callable, capsys: pytest.CaptureFixture[str]):
    assert fit("--model.loss.scale", "0.25", "--model.api_key", "sk-123") == 0
    run = Path("runs/g/a")
    assert sorted(path.name for path in run.iterdir()) == ["checkpoints", "config.yaml", "metrics.csv", "model"]
    checkpoints = ["epoch=0-step=5.ckpt", "epoch=1-step=10.ckpt", "last.ckpt"]
    assert sorted(path.name for path in (run / "checkpoints").iterdir()) == checkpoints
    assert not Path("lightning_logs").exists()
    assert [row["step"] for row in rows() if row["train/loss"]] == [str(step) for step in range(12)]
    assert [row["step"] for row in rows() if row["val/loss"]] == ["5", "11"]

    config = yaml.safe_load((run / "config.yaml").read_text())
    assert config["run"] == "runs/g/a"
    assert config["seed_everything"] == 42
    assert config["model"]["init_args"]["loss"] == {"class_path": "own_classes.OwnLoss", "init_args": {"scale": 0.25}}
    assert config["model"]["init_args"]["api_key"] == "***"
    assert (
        config["trainer"]["callbacks"][1]["init_args"]["dirpath"] is None
    )  # so that --run makes the same run elsewhere
    assert not {"ckpt_path", "overwrite"} & config.keys()

    weights = torch.load(run / "model" / "weights.pt", weights_only=True)
    last = torch.load(run / "checkpoints" / "last.ckpt", weights_only=False)
    assert last["global_step"] == 10
    assert weights.keys() == {"weight", "bias"}

    printed = capsys.readouterr().out
    assert "own callback" in printed
    assert "RandomState" in printed  # the callbacks of every run
    assert printed.splitlines()[-1] == "The run is in runs/g/a. See it beside its group: lit-align compare runs/g"


def test_a_saved_config_makes_the_same_run_elsewhere_and_validates_it(fit: Callable):
    assert fit() == 0
    shutil.copy("runs/g/a/config.yaml", "saved.yaml")
    assert fit("--run", "runs/g/b", config="saved.yaml") == 0
    assert Path("runs/g/a/metrics.csv").read_text() == Path("runs/g/b/metrics.csv").read_text()
    before = sorted(Path("runs/g/b").rglob("*"))
    assert fit("--ckpt_path", "last", command="validate", config="runs/g/b/config.yaml") == 0
    assert sorted(Path("runs/g/b").rglob("*")) == before
    assert not Path("lightning_logs").exists()


def test_a_second_run_is_refused_continued_or_replaced(fit: Callable, capsys: pytest.CaptureFixture[str]):
    assert fit() == 0
    whole = rows()
    assert fit() == 2
    assert "error: runs/g/a already holds a run." in capsys.readouterr().err
    assert rows() == whole

    # The rows after step 10 are written again, with the same numbers, and none twice.
    assert fit("--ckpt_path", "runs/g/a/checkpoints/epoch=1-step=10.ckpt") == 0
    assert rows() == whole
    assert fit("--ckpt_path", "last", "--trainer.max_epochs", "3") == 0
    assert rows()[: len(whole)] == whole
    assert [row["step"] for row in rows() if row["train/loss"]] == [str(step) for step in range(len(whole) - 2 + 6)][
        :18
    ]

    Path("runs/g/a/notes.md").touch()
    assert fit("--overwrite", "true", "--model.lr", "0.2") == 0
    assert len(rows()) == len(whole)
    assert yaml.safe_load(Path("runs/g/a/config.yaml").read_text())["model"]["init_args"]["lr"] == 0.2
    assert Path("runs/g/a/notes.md").exists()


def test_a_replaced_run_stays_until_the_new_one_can_start(fit: Callable):
    assert fit() == 0
    assert fit("--overwrite", "true", "--model.loss.scale", "-1") == 2
    assert len(rows()) == 14


MINI = ["--model.policy.path", "mini_instruct", "--model.policy.init", "random"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--run", "null"], "A run needs a folder: add `run: runs/<group>/<name>` to the config, or `--run`."),
        (["--ckpt_path", "gone.ckpt"], "There is no checkpoint gone.ckpt."),
        (
            ["--ckpt_path", "last"],
            "There is no runs/g/a/checkpoints/last.ckpt; runs/g/a/checkpoints holds no whole checkpoint.",
        ),
        (
            ["--ckpt_path", "last", "--overwrite", "true"],
            "`--overwrite` removes the run that `--ckpt_path` would continue",
        ),
        (["--model.loss.scale", "-1"], "scale must not be negative."),
        (
            ["--model.loss.scael", "1"],
            "command line: model.loss: OwnLoss has no argument 'scael'; did you mean 'scale'?",
        ),
        (["--trainer.strategy", "dpd"], "trainer: You selected an invalid strategy name"),
        (
            ["--trainer.callbacks", "[{class_path: ModelCheckpoint}, {class_path: ModelCheckpoint}]"],
            "trainer.callbacks: there are two ModelCheckpoint that a checkpoint cannot tell apart. Leave one out.",
        ),
        (
            ["--trainer.fast_dev_run", "true", "--overwrite", "true"],
            "`--overwrite` replaces a run, and nothing is written",
        ),
        (["--data", "null"], "`train_dataloader` must be implemented"),
        (["--model", "DPO", *MINI, "--data", "null"], "DPO needs rows: add `data:`"),
    ],
)
def test_what_is_refused(fit: Callable, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]):
    Path("c.yaml").write_text(CONFIG.replace("    - class_path: own_classes.Say\n", ""))
    assert fit(*arguments) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith(f"error: {message}"), error
    assert not list(Path("runs/g").glob("*/checkpoints/*"))


def test_a_bug_in_a_constructor_is_raised_as_it_was(fit: Callable):
    with pytest.raises(ZeroDivisionError, match="a bug"):
        fit("--model.loss.scale", "13")


def test_a_dry_run_writes_nothing(fit: Callable):
    assert fit("--trainer.fast_dev_run", "true") == 0
    assert not list(Path().rglob("*.ckpt"))
    assert not Path("runs/g/a").exists()


def test_several_configs_merge_in_order(fit: Callable):
    Path("d.yaml").write_text("run: runs/g/d\ntrainer: {max_epochs: 1}\nmodel: {init_args: {lr: 0.3}}\n")
    assert fit("--config", "d.yaml", "--model.lr", "0.4") == 0
    config = yaml.safe_load(Path("runs/g/d/config.yaml").read_text())
    assert config["trainer"]["max_epochs"] == 1
    assert config["model"]["init_args"]["lr"] == 0.4
    assert config["model"]["init_args"]["loss"]["init_args"]["scale"] == 0.5


SCRIPT = [str(Path(sys.executable).parent / "lit-align")]


@pytest.mark.parametrize("start", [["-m", "lit_align"], pytest.param(SCRIPT, marks=pytest.mark.slow)])
def test_on_two_ranks_by_module_and_by_script(start: list[str], tmp_path: Path):
    """DDP starts its second rank by running the same command again."""
    (tmp_path / "own_classes.py").write_text(OWN_FILE)
    (tmp_path / "c.yaml").write_text(CONFIG)
    command = [
        sys.executable,
        *start,
        "fit",
        "--config",
        "c.yaml",
        "--trainer.devices",
        "2",
        "--trainer.strategy",
        "ddp",
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1].startswith("The run is in runs/g/a.")
    run = tmp_path / "runs" / "g" / "a"
    assert (run / "model" / "weights.pt").is_file()
    with (run / "metrics.csv").open(newline="") as lines:
        assert [row["step"] for row in csv.DictReader(lines) if row["train/loss"]] == [str(step) for step in range(6)]


def test_secrets_are_not_written():
    config = {
        "model": {"judge": {"api_key": "a", "apikey": "b", "model": "gpt"}, "pad_token": "<pad>", "max_new_tokens": 3},
        "list": [{"HF_TOKEN": "c", "password": None}],
    }
    assert without_secrets(config) == {
        "model": {
            "judge": {"api_key": "***", "apikey": "***", "model": "gpt"},
            "pad_token": "<pad>",
            "max_new_tokens": 3,
        },
        "list": [{"HF_TOKEN": "***", "password": None}],
    }


def test_user_errors_are_value_errors():
    assert issubclass(UserError, ValueError)
