"""A reference that follows the policy: when it moves, where it is kept, and that runs resume with it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything
from lightning.pytorch.callbacks import ModelCheckpoint

from lit_align.data import LabelData, PreferenceData
from lit_align.methods import DPO, KTO, SFT
from lit_align.models import LoRAConfig, ModelConfig, MovingReference, load_policy

# Resumed runs write no checkpoints.
pytestmark = pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`, callbacks")
METHODS = {"dpo": (DPO, PreferenceData), "kto": (KTO, LabelData)}


@pytest.fixture(scope="module")
def start(tmp_path_factory) -> Path:
    seed_everything(1, verbose=False)
    module = SFT(ModelConfig("mini_instruct", init="random"))
    module.configure_model()
    folder: Path = tmp_path_factory.mktemp("moving") / "start"
    module.export(folder)
    return folder


def weights(model: torch.nn.Module) -> torch.Tensor:
    return torch.nn.utils.parameters_to_vector(model.parameters()).detach().clone()


class Trace(Callback):
    """Weights of policy and reference after every optimiser step."""

    def __init__(self) -> None:
        self.steps: list[tuple[torch.Tensor, torch.Tensor]] = []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        if trainer.global_step > len(self.steps):
            self.steps.append((weights(pl_module.policy), weights(pl_module.reference)))


def run(
    start: Path,
    folder: Path,
    reference: MovingReference,
    name: str = "dpo",
    callbacks: tuple[Callback, ...] = (),
    ckpt_path: Path | None = None,
    lora: LoRAConfig | None = None,
    **trainer: object,
) -> LightningModule:
    """Six optimiser steps of two batches each, with dropout to tell train from eval mode."""
    method, rows = METHODS[name]
    seed_everything(7 if ckpt_path is None else 99, verbose=False)
    module = method(
        policy=ModelConfig(str(start), dropout=0.1, lora=lora),
        reference=reference,
        optimizer=lambda parameters: torch.optim.AdamW(parameters, lr=1e-2),
    )
    saves = any(isinstance(callback, ModelCheckpoint) for callback in callbacks)
    fit = Trainer(
        accelerator="cpu", max_epochs=2, logger=False, enable_progress_bar=False, enable_model_summary=False,
        default_root_dir=folder, accumulate_grad_batches=2, callbacks=list(callbacks), enable_checkpointing=saves,
        **trainer,
    )  # fmt: skip
    data = rows("mini_instruct", val="mini_instruct", max_rows=48, batch_size=8, val_batch_size=1000)
    fit.fit(module, data, ckpt_path=ckpt_path)
    return module


@pytest.mark.parametrize("mix", [1.0, 0.3])
def test_it_moves_every_so_many_steps(mix, start, tmp_path):
    trace = Trace()
    module = run(start, tmp_path, MovingReference(every=2, mix=mix), callbacks=(trace,))
    expected = weights(load_policy(ModelConfig(str(start))))
    assert len(trace.steps) == 6
    for step, (policy, reference) in enumerate(trace.steps, start=1):
        if step % 2 == 0:
            expected = mix * policy + (1 - mix) * expected
        torch.testing.assert_close(reference, expected, atol=1e-6, rtol=1e-6)
    assert not module.reference_model().training
    assert all(not parameter.requires_grad for parameter in module.reference.parameters())
    assert len(module.trainer.optimizers[0].param_groups[0]["params"]) == len(list(module.policy.parameters()))


def test_right_after_a_hard_update_policy_and_reference_are_one(start, tmp_path):
    trace = Trace()
    run(start, tmp_path, MovingReference(every=1), callbacks=(trace,))
    assert all(torch.equal(policy, reference) for policy, reference in trace.steps)


@pytest.mark.parametrize("name", METHODS)
def test_every_checkpoint_leads_to_the_same_end(name, start, tmp_path):
    reference = MovingReference(every=2, mix=0.5)
    keep = ModelCheckpoint(tmp_path / "whole", "{step}", every_n_train_steps=1, save_top_k=-1)
    whole = run(start, tmp_path, reference, name, (keep,)).state_dict()
    assert any(key.startswith("reference.") for key in whole)
    found = sorted((tmp_path / "whole").glob("*.ckpt"))
    assert len(found) == 6
    for checkpoint in found:
        resumed = run(start, tmp_path, reference, name, ckpt_path=checkpoint).state_dict()
        assert [key for key, value in whole.items() if not torch.equal(resumed[key], value)] == [], checkpoint.name


def test_an_adapter_moves_and_resumes(start, tmp_path):
    trace, reference, lora = Trace(), MovingReference(every=2), LoRAConfig(rank=2)
    keep = ModelCheckpoint(tmp_path / "whole", "{step}", every_n_train_steps=1, save_top_k=-1)
    whole = run(start, tmp_path, reference, callbacks=(trace, keep), lora=lora).state_dict()
    policies, references = zip(*trace.steps, strict=True)
    for step in (2, 4, 6):
        assert torch.equal(references[step - 1], policies[step - 1])
        assert not torch.equal(references[step - 2], policies[step - 2])
    assert torch.equal(references[2], policies[1])
    for checkpoint in sorted((tmp_path / "whole").glob("*.ckpt"))[2:4]:
        resumed = run(start, tmp_path, reference, ckpt_path=checkpoint, lora=lora).state_dict()
        assert [key for key, value in whole.items() if not torch.equal(resumed[key], value)] == [], checkpoint.name


def on_a_rank(start: Path, folder: Path) -> list[torch.Tensor]:
    reference = MovingReference(every=2, mix=0.5)
    module = run(start, folder / os.environ["RANK"], reference, devices=2, strategy="ddp")
    return [weights(module.policy), weights(module.reference)]


@pytest.mark.slow
def test_it_is_the_same_on_every_rank(start, tmp_path, on_two_ranks):
    first, second = on_two_ranks(on_a_rank, start, tmp_path)
    assert torch.equal(first[0], second[0])
    assert torch.equal(first[1], second[1])
    assert not torch.equal(first[0], first[1])
