"""Supervised fine-tuning: the policy learns to say what the demonstrations say."""

from __future__ import annotations

from pathlib import Path

import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor

from lit_align.errors import UserError
from lit_align.groups import GroupBatch, sum_by_response
from lit_align.losses import NLL, SFTLoss
from lit_align.methods.base import AlignmentModule, StepOutput
from lit_align.methods.schedule import Schedule
from lit_align.models import ModelConfig, load_policy, response_logps, save_model


class SFT(AlignmentModule):
    """Maximises the log-probability of demonstrations (Ouyang et al. 2022, 2203.02155, section 3.5).

    With the loss `Unlikelihood` also minimises that of undesirable responses. Where rows weigh their tokens, a token's loss is
    multiplied by its weight; the mean is still over all tokens.

    Metrics: `nll` (negative log-probability of a response token, nats), `sequence_nll` (of a whole response),
    `response_length/mean` (tokens, EOS included).

    Args:
        policy: The model to train.
        loss: What a response costs.
        optimizer: A class of `torch.optim`, or of your own, with its arguments.
        lr_scheduler: `{warmup, decay, final}`, or a class of `torch.optim.lr_scheduler` with its arguments.
    """

    prog_bar = ("loss",)
    uses_token_weights = True

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
            losses=token_losses(self.loss, logps, batch),
            metrics={
                "nll": -logps,
                "sequence_nll": -sum_by_response(logps, batch.response_index, batch.n_responses),
                "response_length/mean": batch.response_lengths,
            },
        )

    def export(self, folder: str | Path) -> None:
        """Writes the policy."""
        save_model(self.policy, self.tokenizer, folder, write=self.global_rank == 0)


def token_losses(loss: SFTLoss, logps: Tensor, batch: GroupBatch) -> Tensor:
    """What each response token of a batch costs, its weight included, `(M,)`.

    Args:
        loss: What a token of weight 1 costs.
        logps: Log-probability of each response token, nats, `(M,)`.
        batch: Whose tokens they are.

    Raises:
        UserError: The rows have labels or weights that the loss would ignore.
    """
    losses = loss(logps, batch.response_index, batch.labels)
    if batch.token_weights is None:
        return losses
    if losses.shape != batch.token_weights.shape:
        raise UserError(
            f"{type(loss).__name__} gives no value for each token, so the weights of the rows' tokens would have no effect. "
            "Use NLL, or rows without weights."
        )
    return losses * batch.token_weights
