"""Direct preference optimisation and its family: one method, the loss is an argument."""

from __future__ import annotations

from pathlib import Path

import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable

from lit_align.errors import UserError
from lit_align.groups import GroupBatch
from lit_align.losses import DPO as DPOLoss
from lit_align.losses import PreferenceLoss
from lit_align.methods.base import AlignmentModule, StepOutput
from lit_align.methods.pairs import pair_metrics, paired
from lit_align.methods.schedule import Schedule
from lit_align.models import FrozenReference, ModelConfig, ReferenceConfig, load_policy, response_logps, save_model


class DPO(AlignmentModule):
    """Makes preferred responses likelier than dispreferred ones, relative to a frozen reference.

    Rafailov et al. 2023 (2305.18290), equation 7, with whatever loss of that family. The reference is the policy as it was
    before the first step; losses that need none (SimPO, ORPO, CPO) hold none.
    Of groups with more than two responses, every pair whose scores differ is compared. Where rows weigh their tokens, each
    log-probability counts times its weight, in policy and reference alike; lengths remain numbers of tokens.

    Metrics: `rewards/chosen` and `rewards/rejected` (implicit rewards as the loss defines them, for DPO beta times the
    log-ratio), `rewards/margin` (their difference), `rewards/accuracy` (share of pairs whose margin is positive, a half where
    it is 0), `logps/chosen` and `logps/rejected` (summed log-probabilities, nats).

    Args:
        policy: The model to train, as a rule the one that SFT made.
        loss: What a pair costs.
        reference: What the policy is compared with: a frozen copy, log-probs cached on disk, or a copy that moves.
        optimizer: A class of `torch.optim`, or of your own, with its arguments.
        lr_scheduler: `{warmup, decay, final}`, or a class of `torch.optim.lr_scheduler` with its arguments.
    """

    prog_bar = ("loss", "rewards/accuracy", "rewards/margin")
    uses_token_weights = True

    def __init__(
        self,
        policy: ModelConfig,
        loss: PreferenceLoss = DPOLoss(),
        reference: ReferenceConfig = FrozenReference(),
        optimizer: OptimizerCallable = lambda parameters: torch.optim.AdamW(parameters, lr=5e-7),
        lr_scheduler: Schedule | LRSchedulerCallable = Schedule(warmup=0.1, decay="linear"),
    ) -> None:
        super().__init__(policy, optimizer, lr_scheduler)
        self.loss = loss
        self.reference_config = reference
        reference.check(policy)
        if not loss.needs_reference and reference != FrozenReference():
            raise UserError(
                f"{type(loss).__name__} compares with no reference, so `reference` has no effect: leave it out."
            )

    def configure_model(self) -> None:
        """Loads the policy, and keeps it as it is then as the reference."""
        if not hasattr(self, "policy"):
            self.policy = load_policy(self.policy_config)
            if self.loss.needs_reference:
                self.keep_reference(self.policy, self.reference_config)

    def step(self, batch: GroupBatch) -> StepOutput:
        """One loss a pair."""
        policy = batch.weighted_sums(response_logps(self.policy, batch))
        reference = self.reference_sums(batch) if self.loss.needs_reference else None
        pairs = paired(batch, policy, reference)
        return StepOutput(self.loss(pairs), pair_metrics(self.loss, pairs))

    def export(self, folder: str | Path) -> None:
        """Writes the policy."""
        save_model(self.policy, self.tokenizer, folder, write=self.global_rank == 0)
