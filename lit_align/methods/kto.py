"""Kahneman-Tversky optimisation: learning from responses that are each labelled desirable or not."""

from __future__ import annotations

from pathlib import Path

import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from lit_align.data import LabelBatch, LabelData
from lit_align.errors import UserError
from lit_align.groups import GroupBatch
from lit_align.losses import KTO as KTOLoss
from lit_align.losses import LabelLoss
from lit_align.methods.base import AlignmentModule, StepOutput
from lit_align.methods.schedule import Schedule
from lit_align.models import FrozenReference, ModelConfig, ReferenceConfig, load_policy, response_logps, save_model


class KTO(AlignmentModule):
    """Makes desirable responses likelier and undesirable ones less likely, measured against how far the policy has moved.

    Ethayarajh et al. 2024 (2402.01306), equation 7. The reference is the policy as it was before the first step. The point
    that gains and losses are measured from is z0, the mean log-ratio of mismatched pairs (each response after a prompt that it
    does not answer, see `lit_align.data.mismatched`) over the batch of all ranks; it costs a second forward pass, without
    gradient. So two ranks equal one with batches twice as large; accumulated batches have a z0 each, and equal one large batch
    as far as those agree.

    Metrics: `rewards/chosen` and `rewards/rejected` (implicit rewards, beta times the log-ratio, of desirable and of
    undesirable responses), `rewards/accuracy` (share of responses whose log-ratio is above z0 where desirable, and below it
    where not; a half where it is equal), `logps/chosen` and `logps/rejected` (summed log-probabilities, nats), `kl/z0` (mean
    log-ratio of the mismatched pairs, nats, before the loss takes a negative one as 0).

    Args:
        policy: The model to train, as a rule the one that SFT made.
        loss: What a response costs.
        reference: What the policy is compared with: a frozen copy, log-probs cached on disk, or a copy that moves.
        optimizer: A class of `torch.optim`, or of your own, with its arguments.
        lr_scheduler: `{warmup, decay, final}`, or a class of `torch.optim.lr_scheduler` with its arguments.
    """

    prog_bar = ("loss", "rewards/accuracy", "kl/z0")

    def __init__(
        self,
        policy: ModelConfig,
        loss: LabelLoss = KTOLoss(),
        reference: ReferenceConfig = FrozenReference(),
        optimizer: OptimizerCallable = lambda parameters: torch.optim.AdamW(parameters, lr=5e-7),
        lr_scheduler: Schedule | LRSchedulerCallable = Schedule(warmup=0.1, decay="linear"),
    ) -> None:
        super().__init__(policy, optimizer, lr_scheduler)
        self.loss = loss
        self.reference_config = reference
        reference.check(policy)

    def setup(self, stage: str) -> None:
        """As in every method; and warns where the training responses are all desirable, or all undesirable."""
        super().setup(stage)
        data = getattr(self.trainer, "datamodule", None)
        if stage != "fit" or not isinstance(data, LabelData):
            return
        desirable, undesirable = data.label_counts()
        if not desirable or not undesirable:
            rank_zero_warn(
                f"KTO sets desirable responses against undesirable ones and needs both, but all {desirable + undesirable:,} "
                f"training responses are {'desirable' if desirable else 'undesirable'}: add rows whose label is "
                f"{'false' if desirable else 'true'}."
            )

    def configure_model(self) -> None:
        """Loads the policy, and keeps it as it is then as the reference."""
        if not hasattr(self, "policy"):
            self.policy = load_policy(self.policy_config)
            self.keep_reference(self.policy, self.reference_config)

    def step(self, batch: GroupBatch) -> StepOutput:
        """One loss a response."""
        if not isinstance(batch, LabelBatch) or batch.labels is None:
            raise UserError("KTO learns from labelled rows: set data.class_path: LabelData.")
        labels = batch.labels
        logps = batch.weighted_sums(response_logps(self.policy, batch))
        log_ratios = logps - self.reference_sums(batch)
        mismatched = self.mismatched_log_ratios(batch)
        z0 = self._mean_over_ranks(mismatched, batch.is_filler)
        with torch.no_grad():
            rewards = self.loss.rewards(log_ratios)
            gains = log_ratios - z0.clamp(min=0)
        return StepOutput(
            losses=self.loss(log_ratios, labels, z0),
            metrics={
                "rewards/chosen": rewards[labels],
                "rewards/rejected": rewards[~labels],
                "rewards/accuracy": (torch.where(labels, gains, -gains).sign() + 1) / 2,
                "logps/chosen": logps[labels],
                "logps/rejected": logps[~labels],
                "kl/z0": mismatched,
            },
        )

    @torch.no_grad()
    def mismatched_log_ratios(self, batch: LabelBatch) -> Tensor:
        """Log-ratio of every response after its mismatched prompt, summed over its tokens, nats, without gradient, `(N,)`."""
        pairs = batch.mismatched
        return pairs.weighted_sums(response_logps(self.policy, pairs)) - self.reference_sums(pairs, "mismatched")

    def reference_batches(self, batch: LabelBatch) -> dict[str, GroupBatch]:
        """The responses, and their mismatched pairs."""
        return {"responses": batch, "mismatched": batch.mismatched}

    def export(self, folder: str | Path) -> None:
        """Writes the policy."""
        save_model(self.policy, self.tokenizer, folder, write=self.global_rank == 0)

    @staticmethod
    def _mean_over_ranks(values: Tensor, is_filler: bool) -> Tensor:
        """The mean over the values of every rank, a scalar; a filler takes part and counts for nothing."""
        total = torch.stack([values.sum(), values.new_tensor(len(values))]) * (0.0 if is_filler else 1.0)
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.all_reduce(total)
        return total[0] / total[1]
