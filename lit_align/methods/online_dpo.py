"""Online and iterative DPO: the policy's own responses are sampled, judged, and preferred over one another."""

from __future__ import annotations

import time
from collections.abc import Sequence
from itertools import combinations
from pathlib import Path
from typing import Any, Literal

import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor

from lit_align.data import PromptBatch
from lit_align.errors import UserError
from lit_align.feedback import Answer, Judge, RewardSource
from lit_align.groups import sum_by_response
from lit_align.losses import DPO as DPOLoss
from lit_align.losses import PreferenceLoss
from lit_align.losses.kl import k1, k3
from lit_align.methods.base import AlignmentModule, StepOutput
from lit_align.methods.own_responses import joined, moments_over_ranks, own_collate, rollout_logps, sampled_groups
from lit_align.methods.pairs import pair_metrics, paired
from lit_align.methods.schedule import Schedule
from lit_align.models import ModelConfig, load_policy, response_logps, save_model
from lit_align.rollout import NativeEngine, RolloutConfig, stop_token_ids
from lit_align.rollout.loader import PositionedLoader, Rollout, RolloutBatch, RolloutLoader
from lit_align.runtime import log_samples


class OnlineDPO(AlignmentModule):
    """Samples K responses a prompt, has them judged, and makes the better ones likelier by a loss of the DPO family.

    Online AI feedback (Guo et al. 2024, 2402.04792) where responses are sampled anew for each step; iterative DPO (Xiong et
    al. 2023, 2312.11456) where a round of prompts is sampled at once and trained on before the next. A round is `refresh_every`
    batches of prompts; each is one batch to the Trainer for every inner epoch.

    With a reward source the rewards order the responses. A judge compares all pairs of the K responses, and a response's score
    is its mean probability of being the better one. Equal scores, as identical responses have, make no pair.

    Metrics of a round: `reward/mean` and `reward/std` with a reward source, `judge/confidence` with a judge (how far from a tie
    its verdicts are, 0 to 1), `ties` (share of prompts without a pair), `kl/k1` and `kl/k3` (KL of a response to the initial
    policy, nats, on all K samples), `response_length/mean`, `eos_rate`, `time/rollout`, `time/score` (seconds). Of each
    optimiser step those of `DPO`.

    Args:
        policy: The model to train, as a rule the one that SFT made.
        judge: What orders responses: a reward source, or a judge of pairs.
        rollout: How responses are sampled.
        responses_per_prompt: K.
        pairs: `extremes` trains on the best against the worst response of each prompt, `all` on every pair of different score.
        loss: What a pair costs.
        reference: What the loss compares the policy with: the `initial` policy, or the policy that sampled the `round`.
        refresh_every: Batches of prompts that are sampled at once; None samples a whole epoch at once.
        inner_epochs: How often each round is trained on.
        layout: How batches are laid out, as in the DataModules.
        tokens_per_row: Width of the shared layout's rows; 1024 if not given.
        log_samples_every: Rounds between two that write a few of their responses to samples.jsonl and wandb; 0 for none.
        optimizer: A class of `torch.optim`, or of your own, with its arguments.
        lr_scheduler: `{warmup, decay, final}`, or a class of `torch.optim.lr_scheduler` with its arguments.
    """

    prog_bar = ("loss", "reward/mean", "kl/k1")

    def __init__(
        self,
        policy: ModelConfig,
        judge: RewardSource | Judge,
        rollout: RolloutConfig,
        responses_per_prompt: int = 2,
        pairs: Literal["extremes", "all"] = "extremes",
        loss: PreferenceLoss = DPOLoss(),
        reference: Literal["initial", "round"] = "initial",
        refresh_every: int | None = 1,
        inner_epochs: int = 1,
        layout: Literal["padded", "shared"] = "padded",
        tokens_per_row: int | None = None,
        log_samples_every: int = 10,
        optimizer: OptimizerCallable = lambda parameters: torch.optim.AdamW(parameters, lr=5e-7),
        lr_scheduler: Schedule | LRSchedulerCallable = Schedule(warmup=0.1, decay="linear"),
    ) -> None:
        super().__init__(policy, optimizer, lr_scheduler)
        self.judge = judge
        self.rollout = rollout
        self.responses_per_prompt = responses_per_prompt
        self.pairs = pairs
        self.loss = loss
        self.reference_is = reference
        self.refresh_every = refresh_every
        self.inner_epochs = inner_epochs
        self.collate = own_collate(self.tokenizer, layout, tokens_per_row)
        self.log_samples_every = log_samples_every
        self._refuse_what_has_no_effect()
        self._rounds = 0
        self._round_metrics: dict[str, float] = {}

    def _refuse_what_has_no_effect(self) -> None:
        if self.responses_per_prompt < 2:
            raise UserError(
                f"OnlineDPO compares responses: set responses_per_prompt to 2 or more, got {self.responses_per_prompt}."
            )
        if self.responses_per_prompt == 2 and self.pairs == "all":
            raise UserError("pairs: all has no effect with two responses a prompt: leave it out.")
        if not self.loss.needs_reference and self.reference_is == "round":
            raise UserError(
                f"{type(self.loss).__name__} compares with no reference, so `reference` has no effect: leave it out."
            )
        for what, count in {"refresh_every": self.refresh_every, "inner_epochs": self.inner_epochs}.items():
            if count is not None and count < 1:
                raise UserError(f"{what} must be at least 1, got {count}.")

    def configure_model(self) -> None:
        """Loads the policy, and keeps it as it is then as the reference."""
        if hasattr(self, "policy"):
            return
        self.policy = load_policy(self.policy_config)
        self.keep_reference(self.policy)
        self.judge.attach(self.policy)
        self.engine = NativeEngine(self.policy, self.rollout, stop_token_ids(self.tokenizer, self.policy))

    # A round: what happens between batches of prompts and the first batch of pairs.

    def train_loader(self, prompts: PositionedLoader) -> RolloutLoader:
        """Wraps the loader of prompts into one that samples rounds and serves pairs; the DataModule calls it."""
        rounds = [self.refresh_every or len(prompts)]
        return RolloutLoader(prompts, self.collect, self.collate, self.inner_epochs, rounds=rounds)

    @torch.no_grad()
    def collect(self, batches: list[PromptBatch]) -> Rollout:
        """Samples and orders responses to batches of prompts, and scores the pairs under the reference."""
        began = time.perf_counter()
        prompts = joined(batches)
        groups, answers = sampled_groups(self.engine, self.tokenizer, prompts, self.responses_per_prompt)
        sampled = time.perf_counter()
        self.judge.to(self.device)
        scores, judged = self._scores(answers)
        judging = time.perf_counter() - sampled

        everything = Rollout(groups, self.collate, prompts.is_filler)
        policy, initial = (
            rollout_logps(self, model, everything, len(batches[0])) for model in (self.policy, self.reference_model())
        )
        of_all = everything.minibatch(range(len(groups))).batch
        self._note(everything, answers, scores, judged | {
            "kl/k1": sum_by_response(k1(policy, initial), of_all.response_index, of_all.n_responses),
            "kl/k3": sum_by_response(k3(policy, initial), of_all.response_index, of_all.n_responses),
            "response_length/mean": of_all.response_lengths,
        })  # fmt: skip
        self._round_metrics |= {"time/rollout": sampled - began, "time/score": judging}
        reference = policy if self.reference_is == "round" else initial
        sums = sum_by_response(reference, of_all.response_index, of_all.n_responses)
        kept = self._kept(scores)
        chosen = [
            group._replace(responses=[group.responses[i] for i in of_group], scores=scores[number, of_group].tolist())
            for number, (group, of_group) in enumerate(zip(groups, kept.tolist(), strict=True))
        ]
        reference_sums = sums.view(len(groups), -1).gather(1, kept).flatten()
        return Rollout(chosen, self.collate, prompts.is_filler, responses={"reference": reference_sums})

    def _scores(self, answers: Sequence[Answer]) -> tuple[Tensor, dict[str, Tensor]]:
        """What orders the K responses of each of G prompts, `(G, K)`, and what is logged of it."""
        k = self.responses_per_prompt
        if isinstance(self.judge, RewardSource):
            rewards = self.judge.score_rollout(answers)
            components = {f"reward/{name}": values for name, values in rewards.components.items()}
            return rewards.total.view(-1, k).double(), {"reward/mean": rewards.total, **components}
        pairs = list(combinations(range(k), 2))
        first = [answers[g + i] for g in range(0, len(answers), k) for i, _ in pairs]
        second = [answers[g + j] for g in range(0, len(answers), k) for _, j in pairs]
        verdicts = self.judge(first, second).double().view(-1, len(pairs))
        scores = verdicts.new_zeros(len(verdicts), k)
        for number, (i, j) in enumerate(pairs):
            scores[:, i] += verdicts[:, number] / (k - 1)
            scores[:, j] += (1 - verdicts[:, number]) / (k - 1)
        return scores, {"judge/confidence": (2 * verdicts.flatten() - 1).abs()}

    def _kept(self, scores: Tensor) -> Tensor:
        """Which of the K responses of each prompt are trained on, `(G, K)` or `(G, 2)`."""
        if self.pairs == "all":
            return torch.arange(scores.shape[1]).expand_as(scores)
        best, worst = scores.argmax(1), scores.argmin(1)
        # All equal: two different responses that tie, so that the batch has a group for the prompt and no pair.
        return torch.stack([best, torch.where(worst == best, (best + 1) % scores.shape[1], worst)], dim=1)

    def _note(self, rollout: Rollout, answers: Sequence[Answer], scores: Tensor, watched: dict[str, Tensor]) -> None:
        """Metrics of a round over all ranks, and now and then some samples."""
        watched = watched | {
            "ties": scores.max(1).values == scores.min(1).values,
            "eos_rate": torch.tensor([answer.finished for answer in answers]),
        }
        means, variances, _ = moments_over_ranks(self, watched, rollout.is_filler)
        if "reward/mean" in variances:
            means["reward/std"] = variances["reward/mean"] ** 0.5
        self._round_metrics = means
        if self.log_samples_every and self._rounds % self.log_samples_every == 0:
            rows = [
                {"prompt": a.prompt, "response": a.response, "score": s, "kl": d, "finished": a.finished}
                for a, s, d in zip(answers[:8], scores.flatten().tolist(), watched["kl/k1"].tolist(), strict=False)
            ]
            log_samples(self.trainer, rows)
        self._rounds += 1

    # The update: from pairs to a loss.

    def step(self, batch: RolloutBatch) -> StepOutput:
        """One loss a pair."""
        groups = batch.batch
        policy = sum_by_response(response_logps(self.policy, groups), groups.response_index, groups.n_responses)
        pairs = paired(groups, policy, batch.responses["reference"] if self.loss.needs_reference else None)
        return StepOutput(self.loss(pairs), pair_metrics(self.loss, pairs))

    def on_step_metrics(self, means: dict[str, float]) -> None:
        """Logs what the round in use was."""
        for name, value in self._round_metrics.items():
            self.log(f"train/{name}", value, prog_bar=name in self.prog_bar)

    def validation_step(self, batch: PromptBatch, batch_idx: int) -> None:
        """Samples one response to each prompt and logs its KL to the initial policy, and its score if there is one."""
        groups, answers = sampled_groups(self.engine, self.tokenizer, batch, 1)
        rollout = Rollout(groups, self.collate, batch.is_filler)
        of_all = rollout.minibatch(range(len(groups))).batch
        policy, initial = (
            rollout_logps(self, model, rollout, len(groups)) for model in (self.policy, self.reference_model())
        )
        metrics = {
            "kl/k1": sum_by_response(k1(policy, initial), of_all.response_index, of_all.n_responses),
            "response_length/mean": of_all.response_lengths,
            "eos_rate": torch.tensor([answer.finished for answer in answers]),
        }
        if isinstance(self.judge, RewardSource):
            self.judge.to(self.device)
            metrics["reward/mean"] = self.judge(answers).total
        self.log_validation({name: values.to(self.device) for name, values in metrics.items()}, batch.is_filler)

    # What a checkpoint and the run folder keep.

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Adds the reward's running statistics, and what is logged of the round in use."""
        super().on_save_checkpoint(checkpoint)
        state = self.judge.state_dict() if isinstance(self.judge, RewardSource) else {}
        checkpoint["online_dpo"] = {"judge": state, "rounds": self._rounds, "round_metrics": self._round_metrics}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Takes them back."""
        super().on_load_checkpoint(checkpoint)
        state = checkpoint["online_dpo"]
        if isinstance(self.judge, RewardSource):
            self.judge.load_state_dict(state["judge"])
        self._rounds, self._round_metrics = state["rounds"], dict(state["round_metrics"])

    def export(self, folder: str | Path) -> None:
        """Writes the policy."""
        save_model(self.policy, self.tokenizer, folder, write=self.global_rank == 0)
