"""RRHF: the policy ranks responses by how likely it finds them, as their scores do, and imitates the best one."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor

from lit_align.data import PromptBatch
from lit_align.errors import UserError
from lit_align.feedback import Answer, RewardSource, Scores
from lit_align.groups import GroupBatch, TokenGroup, preferred_pairs, sum_by_response
from lit_align.losses import RRHF as RRHFLoss
from lit_align.losses import RankedLogps, RankingLoss
from lit_align.losses.kl import k1, k3
from lit_align.methods.base import AlignmentModule, StepOutput
from lit_align.methods.own_responses import joined, moments_over_ranks, own_collate, rollout_logps, sampled_groups
from lit_align.methods.schedule import Schedule
from lit_align.models import ModelConfig, load_policy, load_tokenizer, response_logps, save_model
from lit_align.rollout import NativeEngine, RolloutConfig, RolloutEngine, stop_token_ids
from lit_align.rollout.kept import KeptRolloutLoader
from lit_align.rollout.loader import PositionedLoader, Rollout, RolloutBatch, RolloutLoader
from lit_align.runtime import log_samples


@dataclass(frozen=True)
class Candidates:
    """Responses that are sampled and scored during training, in place of rows that bring theirs.

    Args:
        reward: What scores responses; only their order within a prompt counts.
        rollout: How responses are sampled.
        responses_per_prompt: Responses to each prompt from each policy that is sampled.
        refresh: When responses are sampled anew, from the policy as it is then. `once` samples before the first step and keeps
            the responses for all epochs (the paper's BP and DP); `round` samples at the start of each epoch (IP-n is n epochs);
            a number samples every so many batches of prompts (OP-n).
        inner_epochs: How often the responses are trained on before the next ones; with `once`, set trainer.max_epochs.
        samplers: Further models, never trained, that contribute responses. They have the policy's tokenizer.
        kl_coef: Responses are ranked by reward - kl_coef * log(pi(y|x) / pi_ref(y|x)), pi the policy as it is when they are
            scored and pi_ref as it was at the start: the penalised reward of PPO, with the estimator k1 of the whole response.
            Reward units a nat; 0 for none.
        layout: How batches are laid out, as in the DataModules: `shared` has a prompt once, its responses behind it.
        tokens_per_row: Width of the shared layout's rows; 1024 if not given.
        log_samples_every: Samplings between two that write a few responses to samples.jsonl and wandb; 0 for none.
    """

    reward: RewardSource
    rollout: RolloutConfig
    responses_per_prompt: int = 4
    refresh: int | Literal["once", "round"] = "round"
    inner_epochs: int = 1
    samplers: list[ModelConfig] = field(default_factory=list)
    kl_coef: float = 0.0
    layout: Literal["padded", "shared"] = "padded"
    tokens_per_row: int | None = None
    log_samples_every: int = 10

    def __post_init__(self) -> None:
        numbers = {"responses_per_prompt": self.responses_per_prompt, "inner_epochs": self.inner_epochs}
        for name, number in (numbers | ({} if isinstance(self.refresh, str) else {"refresh": self.refresh})).items():
            if number < 1:
                raise UserError(f"candidates.{name} must be at least 1, got {number}.")
        if self.responses_per_prompt == 1 and not self.samplers:
            raise UserError("RRHF ranks the responses to a prompt: set candidates.responses_per_prompt to 2 or more.")
        if self.refresh == "once" and self.inner_epochs > 1:
            raise UserError(
                "With candidates.refresh: once all epochs serve the same responses: set trainer.max_epochs."
            )
        if self.kl_coef < 0:
            raise UserError(f"candidates.kl_coef must be 0 or more, got {self.kl_coef}.")
        if self.refresh == "once" and self.kl_coef:
            raise UserError(
                "candidates.kl_coef has no effect with refresh: once: when responses are scored, the policy is still the "
                "initial one. Leave it out, or sample anew with refresh: round or a number."
            )
        for sampler in self.samplers:
            sampler.refuse_training("candidates.samplers")


class RRHF(AlignmentModule):
    """Ranks the responses to a prompt by their log-probability per token as their scores rank them, and imitates the best.

    Yuan et al. 2023 (2304.05302). One model is trained, and no reference is needed: the rows of `RankingData` (or of
    `PreferenceData`) bring responses with scores. With `candidates` the rows are prompts (`PromptData`), and the responses are
    the policy's own, and other models'. The trained policy scores responses itself: see `lit_align.feedback.LogProbReward`.

    Metrics of each optimiser step: `rank_loss`, `sft_loss`, `rank/accuracy` (share of pairs that the policy orders as their
    scores do, a half where it finds both equal), `rank/kendall` (Kendall's correlation of the two orders within a group),
    `score/best` and `score/others` (log-probability per token of the best responses and of the others, nats; with
    `RRHFReleased` as it normalises them). With `candidates`, of the policy's own responses when they were sampled:
    `reward/mean` and `reward/std`, `reward/<component>`, `kl/k1` and `kl/k3` (KL of a response to the initial policy, nats),
    `response_length/mean`, `eos_rate`; and `reward/best` (the best response to each prompt), `reward/samplers` (responses of
    the samplers), `ties` (share of prompts whose responses all tie), `time/rollout`, `time/score` (seconds).

    Args:
        policy: The model to train, as a rule the one that SFT made.
        loss: What a group costs.
        candidates: Responses to sample and score. None takes those of the rows, with their scores.
        optimizer: A class of `torch.optim`, or of your own, with its arguments.
        lr_scheduler: `{warmup, decay, final}`, or a class of `torch.optim.lr_scheduler` with its arguments.
    """

    prog_bar = ("loss", "rank/accuracy", "reward/mean")

    def __init__(
        self,
        policy: ModelConfig,
        loss: RankingLoss = RRHFLoss(),
        candidates: Candidates | None = None,
        optimizer: OptimizerCallable = lambda parameters: torch.optim.AdamW(parameters, lr=2e-5, weight_decay=0.0),
        lr_scheduler: Schedule | LRSchedulerCallable = Schedule(warmup=0.03, decay="cosine"),
    ) -> None:
        super().__init__(policy, optimizer, lr_scheduler)
        self.loss = loss
        self.candidates = candidates
        self._sampler_engines: list[RolloutEngine] = []
        self._rollouts = 0
        self._rollout_metrics: dict[str, float] = {}
        if candidates is not None:
            self.collate = own_collate(self.tokenizer, candidates.layout, candidates.tokens_per_row)
            vocabulary = self.tokenizer.get_vocab()
            for sampler in candidates.samplers:
                if load_tokenizer(sampler).get_vocab() != vocabulary:
                    raise UserError(
                        f"The sampler {sampler.path!r} has another tokenizer than the policy, so its tokens mean nothing to "
                        "the policy. Sample its responses beforehand, and train on rows with scores (RankingData)."
                    )

    def configure_model(self) -> None:
        """Loads the policy; with `candidates`, keeps it as it is then as the reference."""
        if hasattr(self, "policy"):
            return
        self.policy = load_policy(self.policy_config)
        if self.candidates is not None:
            self.keep_reference(self.policy)
            self.candidates.reward.attach(self.policy)
            self.engine: RolloutEngine = self._engine(self.policy)

    def _engine(self, model: Any) -> NativeEngine:
        assert self.candidates is not None
        return NativeEngine(model, self.candidates.rollout, stop_token_ids(self.tokenizer, model))

    # The candidates: what happens between batches of prompts and the first batch of ranked responses.

    def train_loader(self, rows: PositionedLoader) -> PositionedLoader:
        """With `candidates`, wraps the loader of prompts into one that samples and serves; the DataModule calls it."""
        if self.candidates is None:
            return rows
        if self.candidates.refresh == "once":
            return KeptRolloutLoader(rows, self.collect, self.collate)
        size = len(rows) if self.candidates.refresh == "round" else self.candidates.refresh
        return RolloutLoader(rows, self.collect, self.collate, self.candidates.inner_epochs, rounds=[size])

    @torch.no_grad()
    def collect(self, batches: list[PromptBatch]) -> Rollout:
        """Samples responses to batches of prompts, and scores them."""
        assert self.candidates is not None
        self._check_rows(batches[0])
        began = time.perf_counter()
        prompts = joined(batches)
        groups, answers = self._sampled(prompts)
        sampled = time.perf_counter()
        self.candidates.reward.to(self.device)
        scores = self.candidates.reward.score_rollout(answers)
        scoring = time.perf_counter() - sampled

        rollout = Rollout(groups, self.collate, prompts.is_filler)
        of_all = rollout.minibatch(range(len(groups))).batch
        policy, initial = (
            rollout_logps(self, model, rollout, len(batches[0])) for model in (self.policy, self.reference_model())
        )
        kl = {
            "kl/k1": sum_by_response(k1(policy, initial), of_all.response_index, of_all.n_responses),
            "kl/k3": sum_by_response(k3(policy, initial), of_all.response_index, of_all.n_responses),
        }
        ranked_by = (scores.total - self.candidates.kl_coef * kl["kl/k1"]).view(len(groups), -1)
        rollout.groups = [group._replace(scores=r) for group, r in zip(groups, ranked_by.tolist(), strict=True)]
        self._note(rollout, answers, scores, ranked_by, kl | {"response_length/mean": of_all.response_lengths})
        self._rollout_metrics |= {"time/rollout": sampled - began, "time/score": scoring}
        return rollout

    def _sampled(self, prompts: PromptBatch) -> tuple[list[TokenGroup], list[Answer]]:
        """Responses to each prompt, the policy's own first: as groups, and as answers in the same order."""
        assert self.candidates is not None
        k = self.candidates.responses_per_prompt
        engines = [self.engine, *self._samplers()]
        groups, answers = zip(*(sampled_groups(engine, self.tokenizer, prompts, k) for engine in engines), strict=True)
        merged = [
            of_prompt[0]._replace(responses=[response for group in of_prompt for response in group.responses])
            for of_prompt in zip(*groups, strict=True)
        ]
        return merged, [answer for g in range(len(prompts)) for of in answers for answer in of[g * k : (g + 1) * k]]

    def _samplers(self) -> list[RolloutEngine]:
        """The samplers' engines; their models are loaded when they are first needed, and kept if they are needed again."""
        assert self.candidates is not None
        if self._sampler_engines:
            return self._sampler_engines
        models = [load_policy(config).requires_grad_(False).eval() for config in self.candidates.samplers]
        engines: list[RolloutEngine] = [
            self._engine(self.trainer.precision_plugin.convert_module(model).to(self.device)) for model in models
        ]
        if self.candidates.refresh != "once":
            self._sampler_engines = engines
        return engines

    def _note(
        self, rollout: Rollout, answers: list[Answer], scores: Scores, ranked_by: Tensor, known: dict[str, Tensor]
    ) -> None:
        """Metrics of what was sampled over all ranks, and now and then some samples; `ranked_by` is `(G, K)`."""
        assert self.candidates is not None
        of_responses = {
            **known,
            "reward/mean": scores.total,
            **{f"reward/{name}": values for name, values in scores.components.items()},
            "eos_rate": torch.tensor([answer.finished for answer in answers]),
        }
        is_own = torch.arange(ranked_by.shape[1]).repeat(len(ranked_by)) < self.candidates.responses_per_prompt
        watched = {name: values[is_own] for name, values in of_responses.items()}
        watched["reward/best"] = scores.total.view_as(ranked_by).max(dim=1).values
        watched["reward/samplers"] = scores.total[~is_own]
        watched["ties"] = ranked_by.max(dim=1).values == ranked_by.min(dim=1).values
        means, variances, _ = moments_over_ranks(self, watched, rollout.is_filler)
        self._rollout_metrics = means | {"reward/std": variances["reward/mean"] ** 0.5}
        if self.candidates.log_samples_every and self._rollouts % self.candidates.log_samples_every == 0:
            rows = [
                {"prompt": a.prompt, "response": a.response, "score": s, "kl": d, "finished": a.finished}
                for a, s, d in zip(answers[:8], scores.total.tolist(), known["kl/k1"].tolist(), strict=False)
            ]
            log_samples(self.trainer, rows)
        self._rollouts += 1

    # The update: from ranked responses to a loss.

    def step(self, batch: GroupBatch | RolloutBatch) -> StepOutput:
        """One loss a group."""
        self._check_rows(batch)
        groups = batch.batch if isinstance(batch, RolloutBatch) else batch
        if groups.scores is None:
            raise UserError("RRHF ranks responses by their scores, and these rows have none: use RankingData.")
        sums = sum_by_response(response_logps(self.policy, groups), groups.response_index, groups.n_responses)
        ranked = RankedLogps(sums, groups.response_lengths, groups.scores, groups.group_index, _widths(groups))
        terms = self.loss(ranked)
        better, worse = preferred_pairs(groups.scores, groups.group_index)
        agreement = (terms.p[better] - terms.p[worse]).detach().sign()
        best = ranked.best()
        is_best = torch.zeros_like(groups.group_index, dtype=torch.bool).index_fill(0, best, True)
        return StepOutput(
            losses=terms.losses,
            metrics={
                "rank_loss": terms.rank,
                "sft_loss": terms.sft,
                "rank/accuracy": (agreement + 1) / 2,
                "rank/kendall": _group_means(agreement, groups.group_index[better], groups.n_groups),
                "score/best": terms.p[best],
                "score/others": terms.p[~is_best],
            },
        )

    def _check_rows(self, batch: Any) -> None:
        """Refuses rows that are none for this configuration."""
        if self.candidates is None and isinstance(batch, PromptBatch):
            raise UserError("PromptData brings no responses to rank: use RankingData, or set model.candidates.")
        if self.candidates is not None and isinstance(batch, GroupBatch):
            raise UserError("model.candidates samples its own responses to prompts: use PromptData, or leave it out.")

    def on_step_metrics(self, means: dict[str, float]) -> None:
        """Logs what the candidates in use were."""
        for name, value in self._rollout_metrics.items():
            self.log(f"train/{name}", value, prog_bar=name in self.prog_bar)

    def validation_step(self, batch: GroupBatch | PromptBatch, batch_idx: int) -> None:
        """Of rows: losses and metrics as in training. Of prompts: the score and KL of one sampled response each."""
        self._check_rows(batch)
        if isinstance(batch, GroupBatch):
            self.validate_batch(batch)
            return
        assert self.candidates is not None
        groups, answers = sampled_groups(self.engine, self.tokenizer, batch, 1)
        rollout = Rollout(groups, self.collate, batch.is_filler)
        of_all = rollout.minibatch(range(len(groups))).batch
        policy, initial = (
            rollout_logps(self, model, rollout, len(groups)) for model in (self.policy, self.reference_model())
        )
        self.candidates.reward.to(self.device)
        scores = self.candidates.reward(answers)
        metrics = {
            "reward/mean": scores.total,
            **{f"reward/{name}": values for name, values in scores.components.items()},
            "kl/k1": sum_by_response(k1(policy, initial), of_all.response_index, of_all.n_responses),
            "response_length/mean": of_all.response_lengths,
            "eos_rate": torch.tensor([answer.finished for answer in answers]),
        }
        self.log_validation({name: values.to(self.device) for name, values in metrics.items()}, batch.is_filler)

    # What a checkpoint and the run folder keep.

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Adds the reward's running statistics, and what is logged of the candidates in use."""
        super().on_save_checkpoint(checkpoint)
        if self.candidates is not None:
            checkpoint["rrhf"] = {
                "reward": self.candidates.reward.state_dict(),
                "rollouts": self._rollouts,
                "rollout_metrics": self._rollout_metrics,
            }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Takes them back."""
        super().on_load_checkpoint(checkpoint)
        if self.candidates is not None:
            state = checkpoint["rrhf"]
            self.candidates.reward.load_state_dict(state["reward"])
            self._rollouts, self._rollout_metrics = state["rollouts"], dict(state["rollout_metrics"])

    def export(self, folder: str | Path) -> None:
        """Writes the policy."""
        save_model(self.policy, self.tokenizer, folder, write=self.global_rank == 0)


def _widths(batch: GroupBatch) -> Tensor:
    """Tokens of each prompt and its longest response together, `(G,)`, whatever the layout: positions begin with the prompt."""
    lengths = batch.model_inputs["position_ids"].flatten()[batch.last_index] + 1
    return lengths.new_zeros(batch.n_groups).scatter_reduce(0, batch.group_index, lengths, "amax")


def _group_means(values: Tensor, group_index: Tensor, n_groups: int) -> Tensor:
    """Mean of the values of each group that has some, `(P,)` to `(G',)`."""
    counts = torch.bincount(group_index, minlength=n_groups)
    return values.new_zeros(n_groups).index_add(0, group_index, values)[counts > 0] / counts[counts > 0]
