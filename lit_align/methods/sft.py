"""Supervised fine-tuning: the policy learns to say what the demonstrations say."""

from __future__ import annotations

from pathlib import Path

import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable

from lit_align.groups import GroupBatch, sum_by_response
from lit_align.losses import NLL, SFTLoss
from lit_align.methods.base import AlignmentModule, StepOutput
from lit_align.methods.schedule import Schedule
from lit_align.models import ModelConfig, load_policy, response_logps, save_model


class SFT(AlignmentModule):
    """Maximises the log-probability of demonstrations (Ouyang et al. 2022, 2203.02155, section 3.5).

    Metrics: `nll` (negative log-probability of a response token, nats), `sequence_nll` (of a whole response),
    `response_length/mean` (tokens, EOS included).

    Args:
        policy: The model to train.
        loss: What a response costs.
        optimizer: See `AlignmentModule`.
        lr_scheduler: See `AlignmentModule`.
    """

    prog_bar = ("loss",)

    def __init__(
        self,
        policy: ModelConfig,
        loss: SFTLoss = NLL(),
        optimizer: OptimizerCallable = lambda parameters: torch.optim.AdamW(parameters, lr=2e-5),
        lr_scheduler: Schedule | LRSchedulerCallable = Schedule(),
    ) -> None:
        super().__init__(policy, optimizer, lr_scheduler)
        self.loss = loss

    def configure_model(self) -> None:
        """Loads the policy."""
        if not hasattr(self, "policy"):
            self.policy = load_policy(self.policy_config)

    def step(self, batch: GroupBatch) -> StepOutput:
        """One loss a response token."""
        logps = response_logps(self.policy, batch)
        return StepOutput(
            losses=self.loss(logps, batch.response_index),
            metrics={
                "nll": -logps,
                "sequence_nll": -sum_by_response(logps, batch.response_index, batch.n_responses),
                "response_length/mean": batch.response_lengths,
            },
        )

    def export(self, folder: str | Path) -> None:
        """Writes the policy."""
        save_model(self.policy, self.tokenizer, folder, write=self.global_rank == 0)
