"""One optimiser step over ragged data is the same step however the data is cut: into accumulated batches or over ranks."""

from __future__ import annotations

import os

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, LlamaConfig

from lit_align.data.collate import padded
from lit_align.methods import DPO, SFT, RewardModel
from lit_align.models import ModelConfig

METHODS = {"sft": SFT, "reward": RewardModel, "dpo": DPO}
SIZES = [2, 3, 2, 5, 2, 2, 4]
CUTS = [[0, 1, 2], [3], [4, 5], [6]]


def tiny_config() -> LlamaConfig:
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    return LlamaConfig(vocab_size=40, num_labels=1, pad_token_id=0, eos_token_id=1, tie_word_embeddings=False, **sizes)


def build(name: str) -> LightningModule:
    """A method around a tiny model; DPO away from its start, where every margin is 0."""
    module = METHODS[name](
        policy=ModelConfig(path="mini_instruct", init="random"),
        optimizer=lambda parameters: torch.optim.SGD(parameters, lr=1.0),
        lr_scheduler=lambda optimizer: torch.optim.lr_scheduler.ConstantLR(optimizer, factor=1.0),
    )
    torch.manual_seed(3)
    if name == "reward":
        module.reward_model = AutoModelForSequenceClassification.from_config(tiny_config())
    else:
        module.policy = AutoModelForCausalLM.from_config(tiny_config())
    if name == "dpo":
        module.keep_reference(AutoModelForCausalLM.from_config(tiny_config()))
    return module


def one_step(name: str, batches: list, **trainer: object) -> dict[str, object]:
    """Parameters and logged metrics after one SGD step over all the batches."""
    module = build(name)
    fit = Trainer(
        accelerator="cpu", max_epochs=1, logger=False, enable_progress_bar=False, enable_model_summary=False,
        enable_checkpointing=False, use_distributed_sampler=False, accumulate_grad_batches=len(batches), **trainer,
    )  # fmt: skip
    fit.fit(module, torch.utils.data.DataLoader(batches, batch_size=None))
    assert fit.global_step == 1
    metrics = {name: float(value) for name, value in fit.callback_metrics.items()}
    return {"parameters": [p.detach().clone() for p in module.parameters()], "metrics": metrics}


def rank_steps(shares: list[list]) -> dict[str, dict]:
    """A step of every method on this rank's batches."""
    batches = shares[int(os.environ["RANK"])]
    return {name: one_step(name, batches, devices=2, strategy="ddp") for name in METHODS}


def assert_same(actual: dict, expected: dict) -> None:
    for a, b in zip(actual["parameters"], expected["parameters"], strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)
    assert actual["metrics"].keys() == expected["metrics"].keys()
    for key, value in expected["metrics"].items():
        assert actual["metrics"][key] == pytest.approx(value, abs=1e-5), key


@pytest.mark.parametrize("name", METHODS)
def test_four_accumulated_batches_equal_one(name, random_groups):
    groups = random_groups(SIZES)
    whole = one_step(name, [padded(groups, pad_id=0)])
    parts = one_step(name, [padded([groups[i] for i in cut], pad_id=0) for cut in CUTS])
    assert_same(parts, whole)


@pytest.mark.parametrize("name", METHODS)
def test_the_step_is_the_gradient_of_the_mean_loss(name, random_groups):
    batch = padded(random_groups(SIZES), pad_id=0)
    module = build(name)
    before = [p.detach().clone() for p in module.parameters()]
    module.step(batch).losses.mean().backward()
    expected = [b if p.grad is None else b - p.grad for b, p in zip(before, module.parameters(), strict=True)]
    for a, b in zip(one_step(name, [batch])["parameters"], expected, strict=True):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-5)


def test_two_ranks_equal_one(random_groups, on_two_ranks):
    groups = random_groups(SIZES)
    filler = padded(groups[:1], pad_id=0)
    filler.is_filler = True
    shares = [
        [padded([groups[i] for i in [0, 1, 2]], pad_id=0), padded([groups[3]], pad_id=0)],
        [padded([groups[i] for i in [4, 5, 6]], pad_id=0), filler],
    ]
    for of_rank in on_two_ranks(rank_steps, shares):
        for name in METHODS:
            assert_same(of_rank[name], one_step(name, [padded(groups, pad_id=0)]))


def test_clipping_clips_the_mean_gradient(random_groups):
    batches = [padded([group], pad_id=0) for group in random_groups(SIZES)]
    start = [p.detach().clone() for p in build("sft").parameters()]
    clipped = one_step("sft", batches, gradient_clip_val=0.01)
    moved = torch.stack([(a - b).norm() for a, b in zip(clipped["parameters"], start, strict=True)]).norm()
    assert float(moved) == pytest.approx(0.01, rel=1e-3)
    assert clipped["metrics"]["train/grad_norm"] > 0.1
