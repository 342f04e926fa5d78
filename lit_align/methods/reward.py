"""Reward model: one scalar for a response, learned from comparisons."""

from __future__ import annotations

from pathlib import Path
from typing import cast

import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor
from torchmetrics.classification import BinaryCalibrationError

from lit_align.errors import UserError
from lit_align.groups import GroupBatch, preferred_pairs
from lit_align.losses import KWise, RewardLoss
from lit_align.methods.base import AlignmentModule, StepOutput
from lit_align.methods.schedule import Schedule
from lit_align.models import ModelConfig, load_reward_model, response_rewards, save_model


class RewardModel(AlignmentModule):
    """Learns a scalar from which preferred responses get more (Ouyang et al. 2022, 2203.02155, equation 1).

    With the loss `BinaryCritique` it learns from labels instead: the logit of a response being desirable.

    Preferences fix a reward only up to a constant. As in that paper (section 3.5) a bias is set after training, here so that
    the best responses of the validation groups score 0 on average; the paper takes separate demonstrations, which
    preference data rarely have. No head of transformers' sequence classifiers has a bias, so it is exported as
    `reward_bias` in config.json, to be added to what plain transformers computes; what loads it here does so. Labels fix the
    zero by themselves.

    Metrics: `accuracy` (share of pairs whose better response scores higher, a half where they are equal), `margin` (reward
    of the better minus that of the worse), `score/chosen`, `score/rejected`, and in validation `ece`: the expected
    calibration error of sigmoid(difference) as the probability of winning, 15 bins. Of labelled rows `score/chosen` is that of
    desirable responses and `score/rejected` of the others; `accuracy` is the share of scores with the right sign, `ece` that of
    sigmoid(score) as the probability of being desirable, and there is no `margin`.

    Args:
        policy: The model whose trunk is trained with a new head, as a rule the one that SFT
            made; or a reward model to go on with.
        loss: What a group costs.
        optimizer: A class of `torch.optim`, or of your own, with its arguments.
        lr_scheduler: `{warmup, decay, final}`, or a class of `torch.optim.lr_scheduler` with its arguments.
    """

    prog_bar = ("loss", "accuracy")
    bias: Tensor

    def __init__(
        self,
        policy: ModelConfig,
        loss: RewardLoss = KWise(),
        optimizer: OptimizerCallable = lambda parameters: torch.optim.AdamW(parameters, lr=9e-6),
        lr_scheduler: Schedule | LRSchedulerCallable = Schedule(decay="cosine", final=0.1),
    ) -> None:
        super().__init__(policy, optimizer, lr_scheduler)
        self.loss = loss
        self.calibration = BinaryCalibrationError(n_bins=15, norm="l1")
        self.register_buffer("bias", torch.zeros(()))

    def configure_model(self) -> None:
        """Loads the trunk and the head."""
        if not hasattr(self, "reward_model"):
            self.reward_model = load_reward_model(self.policy_config)

    def rewards(self, batch: GroupBatch) -> Tensor:
        """Reward of every response, `(N,)`, bias included."""
        return response_rewards(self.reward_model, batch) + self.bias

    def step(self, batch: GroupBatch) -> StepOutput:
        """One loss a group."""
        if self.loss.needs_labels != (batch.labels is not None):
            raise UserError(
                f"{type(self.loss).__name__} learns from {'labels' if self.loss.needs_labels else 'scores'}, and the rows have "
                f"{'none' if self.loss.needs_labels else 'labels'}: BinaryCritique goes with LabelData, the other losses with "
                "PreferenceData or RankingData."
            )
        rewards = self.rewards(batch)
        if batch.labels is not None:
            return self._critique(batch, rewards, batch.labels)
        assert batch.scores is not None
        chosen, rejected = preferred_pairs(batch.scores, batch.group_index)
        margin = rewards[chosen] - rewards[rejected]
        return StepOutput(
            losses=self.loss(rewards, batch.scores, batch.group_index, batch.margins),
            metrics={
                "accuracy": (margin.sign() + 1) / 2,
                "margin": margin,
                "score/chosen": rewards[chosen],
                "score/rejected": rewards[rejected],
            },
        )

    def _critique(self, batch: GroupBatch, rewards: Tensor, labels: Tensor) -> StepOutput:
        agrees = torch.where(labels, rewards, -rewards)
        return StepOutput(
            losses=self.loss(rewards, labels.float(), batch.group_index, batch.margins),
            metrics={
                "accuracy": (agrees.sign() + 1) / 2,
                "score/chosen": rewards[labels],
                "score/rejected": rewards[~labels],
            },
        )

    def validation_step(self, batch: GroupBatch, batch_idx: int) -> None:
        """Adds the calibration error to what every method logs."""
        metrics = self.validate_batch(batch).metrics
        if not batch.is_filler:
            # Every pair both ways round: only then is "the first one wins" an event that can be well or badly predicted.
            happens, fails = (
                (metrics["margin"], -metrics["margin"])
                if "margin" in metrics
                else (metrics["score/chosen"], metrics["score/rejected"])
            )
            happened = torch.cat([torch.ones_like(happens), torch.zeros_like(fails)])
            self.calibration.update(torch.cat([happens, fails]).sigmoid(), happened.long())
        self.log("val/ece", self.calibration, on_step=False, on_epoch=True)

    def on_train_end(self) -> None:
        """Sets the bias."""
        if self.loss.needs_labels:
            return
        loader = self.trainer.val_dataloaders
        if not loader:
            rank_zero_info("No validation data, so the reward's bias stays 0: its zero has no meaning.")
            return
        total = torch.zeros(2, device=self.device)
        with torch.no_grad(), self.trainer.precision_plugin.forward_context():
            for batch in loader:
                moved = batch.to(self.device)
                best = self.rewards(moved)[best_responses(moved)]
                if not batch.is_filler:
                    total += torch.stack([best.sum(), best.new_tensor(len(best))])
        total = cast("Tensor", self.trainer.strategy.reduce(total, reduce_op="sum"))
        self.bias = self.bias.float() - total[0] / total[1]

    def export(self, folder: str | Path) -> None:
        """Writes the trunk and its head; the bias as `reward_bias` in config.json."""
        self.reward_model.config.reward_bias = float(self.bias)
        save_model(self.reward_model, self.tokenizer, folder, write=self.global_rank == 0)


def best_responses(batch: GroupBatch) -> Tensor:
    """True for each response that no other of its group beats, `(N,)`."""
    assert batch.scores is not None
    highest = batch.scores.new_full((batch.n_groups,), float("-inf"))
    highest = highest.scatter_reduce(0, batch.group_index, batch.scores, "amax")
    return batch.scores == highest[batch.group_index]
