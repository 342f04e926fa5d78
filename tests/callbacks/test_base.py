from __future__ import annotations

import csv
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from lightning.pytorch import LightningModule, Trainer, seed_everything
from lightning.pytorch.callbacks import ModelCheckpoint

from callbacks.base import Evaluation, ask, quiet
from lit_align.errors import UserError
from lit_align.runtime import default_callbacks, gather_per_rank
from lit_align.runtime.loggers import RunCSVLogger


class Tokenizer:
    """What `quiet` looks after in a tokenizer."""

    padding_side = "right"
    truncation_side = "right"


class Linear(LightningModule):
    """Least squares with dropout, so that every step draws random numbers; nothing of lit_align."""

    def __init__(self) -> None:
        super().__init__()
        self.policy = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Dropout(0.5), torch.nn.Linear(4, 1))
        self.frozen = torch.nn.Linear(2, 2).requires_grad_(False)
        self.tokenizer = Tokenizer()

    def training_step(self, batch, batch_idx):
        return self.policy(batch).square().mean()

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=0.01)


class Meddler(Evaluation):
    """Touches everything a callback could touch."""

    def __init__(self, name: str = "meddler", every_n_steps: int = 2, at_start: bool = True, seed: int = 5) -> None:
        super().__init__(name, every_n_steps, at_start, seed)
        self.drawn: list[tuple[int, float]] = []

    def evaluate(self, trainer, module):
        assert not torch.is_grad_enabled()
        assert not any(part.training for part in module.modules())
        module.train()
        module.requires_grad_(False)
        module.tokenizer.padding_side = "left"
        number = random.random() + np.random.rand() + float(torch.rand(()))
        self.drawn.append((trainer.global_step, number))
        weights = float(sum(parameter.sum() for parameter in module.policy.parameters()))
        return {f"eval/{self.name}": number, "eval/weights": float(np.mean(gather_per_rank(weights)))}


def fit(folder: Path, watchers: list, ckpt_path: Path | None = None, **trainer) -> tuple[LightningModule, Trainer]:
    """Fifty steps unless told otherwise."""
    seed_everything(3, verbose=False)
    module = Linear()
    settings = {"max_steps": 50, "logger": False, "enable_checkpointing": False} | trainer
    fitted = Trainer(
        accelerator="cpu", enable_progress_bar=False, enable_model_summary=False, default_root_dir=folder,
        callbacks=[*default_callbacks(), *watchers], **settings,
    )  # fmt: skip
    loader = torch.utils.data.DataLoader(torch.randn(200, 4, generator=torch.Generator().manual_seed(0)), 4, True)
    fitted.fit(module, loader, ckpt_path=ckpt_path)
    return module, fitted


def same_weights(a: LightningModule, b: LightningModule) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a.parameters(), b.parameters(), strict=True))


def test_training_does_not_notice(tmp_path):
    watched, _ = fit(tmp_path, [Meddler(every_n_steps=3)])
    plain, _ = fit(tmp_path, [])
    assert same_weights(watched, plain)


def on_a_rank(folder: Path) -> tuple[list[torch.Tensor], list[torch.Tensor], list[tuple[int, float]]]:
    two = {"devices": 2, "strategy": "ddp", "use_distributed_sampler": False}
    meddler = Meddler(every_n_steps=3)
    watched, _ = fit(folder, [meddler], **two)
    plain, _ = fit(folder, [], **two)
    return *([p.detach().clone() for p in module.parameters()] for module in (watched, plain)), meddler.drawn


def test_nor_does_it_on_two_ranks(tmp_path, on_two_ranks):
    (first, plain, drawn_0), (second, _, drawn_1) = on_two_ranks(on_a_rank, tmp_path)
    for a, b, c in zip(first, second, plain, strict=True):
        assert torch.equal(a, c)
        assert torch.equal(b, c)
    assert [step for step, _ in drawn_0] == [step for step, _ in drawn_1] == [0, *range(3, 51, 3)]
    assert drawn_0[0][1] != drawn_1[0][1]  # ranks draw numbers of their own


def test_it_measures_when_it_is_its_turn_and_draws_the_same_each_time(tmp_path):
    meddler = Meddler(every_n_steps=4)
    fit(tmp_path, [meddler], max_steps=10, accumulate_grad_batches=2)
    assert [step for step, _ in meddler.drawn] == [0, 4, 8]
    assert len({number for _, number in meddler.drawn}) == 1
    late = Meddler(every_n_steps=4, at_start=False)
    fit(tmp_path, [late], max_steps=10)
    assert [step for step, _ in late.drawn] == [4, 8]


def test_quiet_puts_everything_back(tmp_path):
    module = Linear()
    module.policy[0].eval()
    trainer = Trainer(logger=False, enable_checkpointing=False, accelerator="cpu")
    modes = [part.training for part in module.modules()]
    seed_everything(3, verbose=False)
    expected = [random.random(), np.random.rand(), float(torch.rand(()))]
    seed_everything(3, verbose=False)
    with pytest.raises(TypeError), quiet(trainer, module, 1):
        len(Meddler().evaluate(trainer, module)["eval/weights"])  # also where the callback fails
    assert [random.random(), np.random.rand(), float(torch.rand(()))] == expected
    assert [part.training for part in module.modules()] == modes
    assert [p.requires_grad for p in module.parameters()] == [True] * 4 + [False] * 2
    assert module.tokenizer.padding_side == "right"
    assert torch.is_grad_enabled()


def test_metrics_are_logged_at_once_and_a_checkpoint_can_go_by_them(tmp_path):
    best = ModelCheckpoint(
        tmp_path, filename="{step}", monitor="eval/weights", mode="max", every_n_train_steps=5, save_top_k=1
    )
    logger = RunCSVLogger(tmp_path)
    fit(tmp_path, [best, Meddler(every_n_steps=5)], max_steps=20, logger=logger, log_every_n_steps=1000,
        enable_checkpointing=True)  # fmt: skip
    with (tmp_path / "metrics.csv").open() as lines:
        rows = {int(row["step"]): float(row["eval/weights"]) for row in csv.DictReader(lines)}
    assert list(rows) == [0, 4, 9, 14, 19]  # the row of step n is that of its training metrics
    winner = max([4, 9, 14, 19], key=rows.__getitem__)
    assert best.best_model_score == pytest.approx(rows[winner], abs=1e-6)
    assert Path(best.best_model_path).name == f"step={winner + 1}.ckpt"


@pytest.mark.filterwarnings("ignore:The dirpath has changed", "ignore:You're resuming from a checkpoint")
def test_a_resumed_run_repeats_no_measurement(tmp_path):
    def saving(folder: str) -> ModelCheckpoint:
        return ModelCheckpoint(tmp_path / folder, filename="{step}", every_n_train_steps=6, save_top_k=-1)

    fit(tmp_path, [Meddler(every_n_steps=6), saving("first")], max_steps=20, enable_checkpointing=True)
    resumed = Meddler(every_n_steps=6)
    fit(
        tmp_path, [resumed, saving("second")], max_steps=20, enable_checkpointing=True,
        ckpt_path=tmp_path / "first" / "step=12.ckpt",
    )  # fmt: skip
    assert [step for step, _ in resumed.drawn] == [18]


def test_two_of_a_kind_keep_two_states(tmp_path):
    keep = ModelCheckpoint(tmp_path, filename="both", every_n_train_steps=4)
    two = [Meddler("a", every_n_steps=2), Meddler("b", every_n_steps=3)]
    fit(tmp_path, [*two, keep], max_steps=4, enable_checkpointing=True)
    states = torch.load(tmp_path / "both.ckpt", weights_only=True)["callbacks"]
    assert states["Meddler[a]"] == {"last_step": 4}
    assert states["Meddler[b]"] == {"last_step": 3}


def test_what_cannot_be_is_a_sentence():
    with pytest.raises(UserError, match="every_n_steps must be at least 1, got 0"):
        Meddler(every_n_steps=0)
    with pytest.raises(UserError, match=r"Meddler needs the model .* Linear has no attribute `reference_model`"):
        ask(Linear(), "reference_model", Meddler())
