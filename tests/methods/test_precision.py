from __future__ import annotations

import pytest
import torch
from lightning.pytorch import Trainer
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, LlamaConfig

from lit_align.data.collate import padded
from lit_align.methods import SFT, RewardModel
from lit_align.methods.base import StepOutput
from lit_align.models import ModelConfig

pytestmark = pytest.mark.filterwarnings("ignore:The trained weights are in bfloat16")

TINY = LlamaConfig(
    vocab_size=40, hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2, num_labels=1,
    pad_token_id=0, eos_token_id=1,
)  # fmt: skip


class Known(SFT):
    """Says of each batch what is known beforehand."""

    def step(self, batch):
        return StepOutput(torch.full((100,), 1.5 + float(batch.group_index[-1])), {})


def bf16_trainer() -> Trainer:
    return Trainer(
        accelerator="cpu", precision="bf16-true", max_epochs=1, logger=False, enable_progress_bar=False,
        enable_model_summary=False, enable_checkpointing=False, num_sanity_val_steps=0,
    )  # fmt: skip


def test_means_over_many_rows_are_not_rounded_under_bf16_true(random_groups):
    """1,000 numbers, 500 of them 1.5 and 500 of them 3.5: in bfloat16 their sum would stop at 512."""
    module = Known(ModelConfig(path="mini_instruct", init="random"))
    module.policy = AutoModelForCausalLM.from_config(TINY)
    batches = [padded(random_groups([1] * n), pad_id=0) for n in (1, 3) for _ in range(5)]
    trainer = bf16_trainer()
    trainer.validate(module, torch.utils.data.DataLoader(batches, batch_size=None), verbose=False)
    assert float(trainer.callback_metrics["val/loss"]) == 2.5


def test_a_rewards_bias_is_as_exact_as_the_rewards_under_bf16_true(random_groups):
    """Afterwards the mean reward of the best responses is 0, which a bias of 8 bits cannot make it."""
    module = RewardModel(ModelConfig(path="mini_instruct", init="random"))
    torch.manual_seed(0)
    module.reward_model = AutoModelForSequenceClassification.from_config(TINY)
    torch.nn.init.normal_(module.reward_model.score.weight, mean=0.3)
    groups = random_groups([2] * 6)
    batch = padded(groups, pad_id=0)
    trainer = bf16_trainer()
    loader = torch.utils.data.DataLoader([batch], batch_size=None)
    trainer.fit(module, loader, loader)
    module.to(torch.float32)
    best = [max(range(2), key=lambda i: group.scores[i]) + 2 * n for n, group in enumerate(groups)]
    module.reward_model.bfloat16()
    with torch.no_grad():
        rewards = module.rewards(batch)[best]
    assert module.bias.abs() > 1e-3
    assert rewards.mean().item() == pytest.approx(0, abs=1e-6)
