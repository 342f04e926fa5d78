"""A loss or gradient that is not a number stops the run before it spoils the weights, and names the rows."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from lightning.pytorch import Callback, Trainer, seed_everything

from lit_align.data import SFTData
from lit_align.errors import UserError
from lit_align.groups import GroupBatch
from lit_align.methods import SFT
from lit_align.methods.base import StepOutput
from lit_align.models import ModelConfig

SMALL = {"hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2, "num_key_value_heads": 2}
BAD_ROW = 5


class BrokenLoss(SFT):
    """Its loss of one row is what `value` says."""

    value = float("nan")

    def step(self, batch: GroupBatch) -> StepOutput:
        output = super().step(batch)
        bad = batch.rows[batch.group_index[batch.response_index]] == BAD_ROW
        return StepOutput(torch.where(bad, self.value, output.losses), output.metrics)


class Root(torch.autograd.Function):
    """x, with a gradient that is not a number."""

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        return gradient * float("nan")


class BrokenGradient(SFT):
    def step(self, batch: GroupBatch) -> StepOutput:
        output = super().step(batch)
        losses = Root.apply(output.losses) if BAD_ROW in batch.rows.tolist() else output.losses
        return StepOutput(losses, output.metrics)


class Watch(Callback):
    """The weights before each step, and how many steps there were."""

    steps = 0

    def on_before_zero_grad(self, trainer, pl_module, optimizer):
        self.steps = trainer.global_step
        self.weights = [parameter.detach().clone() for parameter in pl_module.parameters()]


def rows_file(folder: Path) -> Path:
    file = folder / "rows.jsonl"
    words = ["good", "bad", "fine", "dull"]
    rows = [{"prompt": f"{words[n % 4]} {words[n // 4]}", "completion": words[n % 4]} for n in range(16)]
    file.write_text("\n".join(map(json.dumps, rows)))
    return file


def fit(method: type[SFT], folder: Path, **more: object) -> tuple[SFT, Watch]:
    seed_everything(1, verbose=False)
    folder.mkdir(exist_ok=True)
    module = method(ModelConfig("mini_instruct", init="random", overrides=SMALL))
    watch = Watch()
    trainer = Trainer(
        accelerator="cpu", max_epochs=1, logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, default_root_dir=folder, callbacks=[watch], accumulate_grad_batches=2, **more,
    )  # fmt: skip
    data = SFTData(train="mini_instruct", max_rows=16, batch_size=2)
    with pytest.raises(UserError) as refused:
        trainer.fit(module, data)
    watch.said = str(refused.value)
    assert all(parameter.isfinite().all() for parameter in module.parameters())
    return module, watch


@pytest.mark.parametrize("value", ["nan", "inf"])
def test_a_loss_that_is_not_finite_stops_before_the_step_and_names_its_row(value, tmp_path, monkeypatch):
    monkeypatch.setattr(BrokenLoss, "value", float(value))
    module, watch = fit(BrokenLoss, tmp_path)
    assert watch.said.startswith(f"The loss of step {watch.steps} is {value}, so training stopped before that step")
    assert f"The batches of the step are in {tmp_path / 'bad_batch.json'}." in watch.said
    for before, now in zip(watch.weights, module.parameters(), strict=True):
        assert torch.equal(before, now)

    batches = json.loads((tmp_path / "bad_batch.json").read_text())
    assert [(batch["rank"], batch["batch"]) for batch in batches] == [(0, 0), (0, 1)]
    rows = {row["row"]: row for batch in batches for row in batch["rows"]}
    assert len(rows) == 4
    assert [number for number, row in rows.items() if row["suspect"]] == [BAD_ROW]
    bad = rows[BAD_ROW]
    source, tokens = module.trainer.datamodule.training_row(BAD_ROW)
    assert bad["source"] == source
    assert f"It is in {source}." in watch.said
    assert bad["prompt"] == module.tokenizer.decode(tokens.prompt)
    assert bad["responses"] == [module.tokenizer.decode(tokens.responses[0])]
    assert sum(batch["not_finite"] for batch in batches) == len(tokens.responses[0])


def test_a_gradient_that_is_not_finite_stops_before_the_step(tmp_path):
    module, watch = fit(BrokenGradient, tmp_path)
    assert watch.said.startswith(
        f"The gradients of step {watch.steps} have the norm nan, though its loss is finite, so"
    )
    for before, now in zip(watch.weights, module.parameters(), strict=True):
        assert torch.equal(before, now)
    batches = json.loads((tmp_path / "bad_batch.json").read_text())
    assert [batch["not_finite"] for batch in batches] == [0, 0]
    assert BAD_ROW in [row["row"] for batch in batches for row in batch["rows"]]


def on_this_rank(folder: str) -> str:
    return fit(BrokenLoss, Path(folder), devices=2, strategy="ddp")[1].said


@pytest.mark.slow
def test_two_ranks_agree(on_two_ranks, tmp_path):
    first, second = on_two_ranks(on_this_rank, str(tmp_path))
    assert first == second
    batches = json.loads((tmp_path / "bad_batch.json").read_text())
    assert {batch["rank"] for batch in batches} == {0, 1}
    assert [row["row"] for batch in batches for row in batch["rows"] if row["suspect"]] == [BAD_ROW]
