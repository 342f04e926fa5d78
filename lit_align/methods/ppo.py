"""Proximal policy optimisation, with or without a critic: sample, score, and climb, never far from the reference."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor

from lit_align.data import PromptBatch, SFTData
from lit_align.errors import UserError
from lit_align.feedback import Answer, RewardSource, Scores
from lit_align.groups import GroupBatch, sum_by_response
from lit_align.losses import GAE, AdvantageEstimator, FixedKL, KLController, PolicyLoss, PPOLoss
from lit_align.losses.advantages import token_rewards
from lit_align.losses.kl import k1, k2, k3
from lit_align.losses.ppo import clipped_value_loss
from lit_align.methods.base import AlignmentModule, StepOutput
from lit_align.methods.own_responses import joined, moments_over_ranks, own_collate, sampled_groups
from lit_align.methods.schedule import Schedule
from lit_align.models import (
    ModelConfig,
    load_policy,
    load_reward_model,
    response_hidden,
    response_logps,
    response_values,
    save_model,
    save_value_head,
    token_logps,
    token_stats,
    value_head,
)
from lit_align.rollout import NativeEngine, RolloutConfig, stop_token_ids
from lit_align.rollout.loader import PositionedLoader, Rollout, RolloutBatch, RolloutLoader
from lit_align.runtime import log_samples


@dataclass(frozen=True)
class PretrainingMix:
    """PPO-ptx: every minibatch also climbs the log-probability of text, which repairs the alignment tax.

    Ouyang et al. 2022 (2203.02155), equation 2: + gamma E_pretrain[log pi(x)], here the mean over the text's tokens.

    Args:
        data: Where the text comes from; its `batch_size` groups go with each minibatch.
        coefficient: gamma. The paper finds 20 or more to be needed, and takes 27.8.
    """

    data: SFTData
    coefficient: float = 27.8


KL_ESTIMATORS = {"k1": k1, "k2": k2, "k3": k3}
STALE = 1e-3
"""Approximate KL, nats a token, above which the first minibatch of a rollout cannot come from the policy that sampled it."""


class PPO(AlignmentModule):
    """Maximises a reward minus beta times the KL to the reference, on responses of the policy's own.

    Ouyang et al. 2022 (2203.02155), equation 2, by the clipped surrogate of Schulman et al. 2017 (1707.06347). One rollout
    is one batch of prompts with K responses each; it is scored, and then trained on `inner_epochs` times in `minibatches`
    batches, each of which is a batch to the Trainer (so with `accumulate_grad_batches: 1` an optimiser step). With RLOO or
    GRPO as `advantage` there is no critic, and the loop is the same.

    Metrics of a rollout: `reward/mean` and `reward/std` (of the score, without the KL penalty), `reward/<component>`,
    `kl/k1` and `kl/k3` (KL of a response to the reference, nats, estimated on the samples), `kl_coef`, `response_length/mean`,
    `eos_rate` (share that ended by itself), `explained_variance` (1 - Var(returns - values) / Var(returns)), `time/rollout`,
    `time/score`, `time/update` (seconds). Of each optimiser step, over its response tokens: `policy_loss`, `value_loss`,
    `clip_fraction`, `approx_kl` (k3 of the sampling policy to the present one), `ratio`, `entropy`, with GRPO `kl_loss`, and
    with PPO-ptx `ptx_loss` (negative log-probability of a token of the text, nats).

    Args:
        policy: The model to train, as a rule the one that SFT made; as it is at the start, it is also the reference.
        reward: What scores responses.
        rollout: How responses are sampled.
        responses_per_prompt: K, responses to each prompt of a rollout.
        advantage: Turns rewards into advantages: GAE with a critic, RLOO or GRPO without.
        critic: A reward model to start a separate critic from. None puts a value head on the policy's own trunk.
        critic_lr: Learning rate of the critic or value head, if not the optimiser's.
        loss: The policy's loss.
        kl: Coefficient of the KL penalty: fixed, or steered to a target.
        kl_estimator: Of the penalty on each token. k1 is InstructGPT's; where the KL is in the loss (GRPO), k3 is the paper's,
            and k1 would have no gradient on average.
        inner_epochs: How often each response is trained on.
        minibatches: Into how many batches a rollout is cut.
        target_kl: Drops what is left of a rollout once `approx_kl` exceeds this. None trains on all of it.
        value_coef: Weight of the critic's loss.
        value_clip: How far a value may move in one update, reward units. None does not clip.
        entropy_coef: Weight of an entropy bonus.
        ptx: Text mixed in, if any.
        layout: How minibatches are laid out, as in the DataModules: `shared` has a prompt once, its K responses behind it.
        tokens_per_row: Width of the shared layout's rows; 1024 if not given.
        log_samples_every: Rollouts between two that write a few of their responses to samples.jsonl and wandb; 0 for none.
        optimizer: A class of `torch.optim`, or of your own, with its arguments.
        lr_scheduler: `{warmup, decay, final}`, or a class of `torch.optim.lr_scheduler` with its arguments.
    """

    prog_bar = ("reward/mean", "kl/k1", "val/reward/mean")

    def __init__(
        self,
        policy: ModelConfig,
        reward: RewardSource,
        rollout: RolloutConfig,
        responses_per_prompt: int = 1,
        advantage: AdvantageEstimator = GAE(),
        critic: ModelConfig | None = None,
        critic_lr: float | None = None,
        loss: PolicyLoss = PPOLoss(),
        kl: KLController = FixedKL(0.02),
        kl_estimator: Literal["k1", "k2", "k3"] = "k1",
        inner_epochs: int = 1,
        minibatches: int = 1,
        target_kl: float | None = None,
        value_coef: float = 0.1,
        value_clip: float | None = 0.2,
        entropy_coef: float = 0.0,
        ptx: PretrainingMix | None = None,
        layout: Literal["padded", "shared"] = "padded",
        tokens_per_row: int | None = None,
        log_samples_every: int = 10,
        optimizer: OptimizerCallable = lambda parameters: torch.optim.AdamW(parameters, lr=1e-6, eps=1e-5),
        lr_scheduler: Schedule | LRSchedulerCallable = Schedule(),
    ) -> None:
        super().__init__(policy, optimizer, lr_scheduler)
        self.reward = reward
        self.rollout = rollout
        self.responses_per_prompt = responses_per_prompt
        self.advantage = advantage
        self.critic_config = critic
        self.critic_lr = critic_lr
        self.loss = loss
        self.kl = kl
        self.kl_estimator = KL_ESTIMATORS[kl_estimator]
        self.inner_epochs = inner_epochs
        self.minibatches = minibatches
        self.target_kl = target_kl
        self.value_coef = value_coef
        self.value_clip = value_clip
        self.entropy_coef = entropy_coef
        self.ptx = ptx
        self.log_samples_every = log_samples_every
        self.collate = own_collate(self.tokenizer, layout, tokens_per_row)
        self._refuse_what_has_no_effect(kl_estimator)
        self._rollouts = 0
        self._update_began: float | None = None
        self._is_first_minibatch = False
        self._rollout_metrics: dict[str, float] = {}
        self._loader: RolloutLoader | None = None

    def _refuse_what_has_no_effect(self, kl_estimator: str) -> None:
        name = type(self.advantage).__name__
        if not self.advantage.needs_critic and (self.critic_config is not None or self.critic_lr is not None):
            raise UserError(f"{name} makes no use of a critic: leave critic and critic_lr out, or take GAE.")
        if not self.advantage.needs_critic and self.responses_per_prompt < 2:
            raise UserError(f"{name} compares the responses to a prompt: set responses_per_prompt to 2 or more.")
        if self.advantage.kl_in_loss and kl_estimator == "k1":
            raise UserError(
                f"{name} has the KL in its loss, where k1 has no gradient on average: set kl_estimator: k3."
            )
        lora = self.policy_config.lora
        if self.policy_config.dropout or (lora is not None and lora.dropout):
            raise UserError(
                "policy.dropout and policy.lora.dropout must be 0: a policy with dropout is not the one that its responses "
                "came from."
            )
        for what in ("responses_per_prompt", "inner_epochs", "minibatches"):
            if getattr(self, what) < 1:
                raise UserError(f"{what} must be at least 1, got {getattr(self, what)}.")

    def configure_model(self) -> None:
        """Loads the policy, freezes a copy as the reference, and adds the critic that the advantages need."""
        if hasattr(self, "policy"):
            return
        self.policy = load_policy(self.policy_config)
        self.keep_reference(self.policy)
        self.reward.attach(self.policy)
        if self.advantage.needs_critic and self.critic_config is not None:
            self.critic = load_reward_model(self.critic_config)
        elif self.advantage.needs_critic:
            self.value_head = value_head(self.policy, self.policy_config)
        self.engine = NativeEngine(self.policy, self.rollout, stop_token_ids(self.tokenizer, self.policy))

    def parameter_groups(self) -> list[dict[str, Any]]:
        """The policy, and the critic with its own learning rate."""
        groups: list[dict[str, Any]] = [{"params": [p for p in self.policy.parameters() if p.requires_grad]}]
        if self.advantage.needs_critic:
            critic = self.value_head if self.critic_config is None else self.critic
            groups.append({"params": [p for p in critic.parameters() if p.requires_grad]})
            if self.critic_lr is not None:
                groups[-1]["lr"] = self.critic_lr
        return groups

    # The rollout: what happens between a batch of prompts and the first minibatch.

    def train_loader(self, prompts: PositionedLoader) -> RolloutLoader:
        """Wraps the loader of prompts into one that samples and serves minibatches; the DataModule calls it."""
        text = None
        if self.ptx is not None:
            self.ptx.data.trainer = self.trainer
            self.ptx.data.setup("fit")
            text = self.ptx.data.rows_loader()
        self._loader = RolloutLoader(
            prompts, self.collect, self.collate, self.inner_epochs, self.minibatches, text=text
        )
        return self._loader

    @torch.no_grad()
    def collect(self, batches: list[PromptBatch]) -> Rollout:
        """Samples responses to batches of prompts, scores them, and works out what each token is trained on."""
        began = time.perf_counter()
        prompts = joined(batches)
        groups, answers = sampled_groups(self.engine, self.tokenizer, prompts, self.responses_per_prompt)
        sampled = time.perf_counter()
        self.reward.to(self.device)
        scores = self.reward.score_rollout(answers)
        rollout = Rollout(groups, self.collate, prompts.is_filler)
        batch = rollout.minibatch(range(len(groups))).batch
        logps, ref_logps, values = self._score_tokens(rollout)

        penalty = self.kl_estimator(logps, ref_logps)
        in_rewards = 0.0 if self.advantage.kl_in_loss else self.kl.beta
        rewards = token_rewards(scores.total, penalty, in_rewards, batch.response_index)
        advantages, returns = self._advantages(rewards, values, batch, prompts.is_filler)
        rollout.tokens = {"logps": logps, "ref_logps": ref_logps, "advantages": advantages}
        if values is not None and returns is not None:
            rollout.tokens |= {"values": values, "returns": returns}

        self._note(rollout, batch, answers, scores)
        if self._update_began is not None:
            self._rollout_metrics["time/update"] = began - self._update_began
        self._update_began = time.perf_counter()
        self._rollout_metrics |= {"time/rollout": sampled - began, "time/score": self._update_began - sampled}
        self._is_first_minibatch = not prompts.is_filler
        return rollout

    def _score_tokens(self, rollout: Rollout) -> tuple[Tensor, Tensor, Tensor | None]:
        """Log-probabilities under policy and reference, and values, of every token, a minibatch at a time, on the CPU."""
        parts = torch.arange(len(rollout.groups)).tensor_split(self.minibatches)
        logps, ref_logps, values = [], [], []
        with self.trainer.precision_plugin.forward_context():
            for part in parts:
                batch = rollout.minibatch(part.tolist()).batch.to(self.device)
                hidden = response_hidden(self.policy, batch)
                # Without groups it is a filler: every rank runs every model equally often, and a filler's tokens are no part.
                kept = len(batch.targets) if len(part) else 0
                logps.append(token_logps(self.policy, hidden, batch.targets, self.rollout.sampling)[:kept].cpu())
                ref_logps.append(self.reference_logps(batch)[:kept].cpu())
                if self.advantage.needs_critic:
                    values.append(self._values(hidden, batch)[:kept].cpu())
        return torch.cat(logps), torch.cat(ref_logps), torch.cat(values) if values else None

    def reference_logps(self, batch: GroupBatch) -> Tensor:
        """As in the base, under the distribution that responses are sampled from."""
        with torch.no_grad():
            return response_logps(self.reference_model(), batch, self.rollout.sampling)

    def _values(self, hidden: Tensor, batch: GroupBatch) -> Tensor:
        """The critic's value before each response token, `(M,)`, from the policy's trunk or its own."""
        if self.critic_config is not None:
            return response_values(self.critic, batch)
        values: Tensor = self.value_head(hidden).squeeze(-1)
        return values.float()

    def _advantages(
        self, rewards: Tensor, values: Tensor | None, batch: GroupBatch, is_filler: bool
    ) -> tuple[Tensor, Tensor | None]:
        """On the module's device, because whitening reduces over ranks; a filler takes part without a token."""
        kept, responses = (0, 0) if is_filler else (len(rewards), batch.n_responses)
        estimated = self.advantage(
            rewards[:kept].to(self.device),
            None if values is None else values[:kept].to(self.device),
            batch.response_index[:kept].to(self.device),
            batch.group_index[:responses].to(self.device),
        )
        if is_filler:
            return torch.zeros_like(rewards), None if values is None else torch.zeros_like(rewards)
        return estimated.advantages.cpu(), None if estimated.returns is None else estimated.returns.cpu()

    def _note(self, rollout: Rollout, batch: GroupBatch, answers: list[Answer], scores: Scores) -> None:
        """Metrics of a rollout over all ranks, the KL controller's step, and now and then some samples."""
        tokens, n = rollout.tokens, batch.n_responses
        watched = {
            "reward/mean": scores.total,
            "kl/k1": sum_by_response(k1(tokens["logps"], tokens["ref_logps"]), batch.response_index, n),
            "kl/k3": sum_by_response(k3(tokens["logps"], tokens["ref_logps"]), batch.response_index, n),
            "response_length/mean": batch.response_lengths,
            "eos_rate": torch.tensor([answer.finished for answer in answers]),
            **{f"reward/{name}": values for name, values in scores.components.items()},
        }
        if "returns" in tokens:
            watched |= {"_returns": tokens["returns"], "_residual": tokens["returns"] - tokens["values"]}
        means, variances, counts = moments_over_ranks(self, watched, rollout.is_filler)
        if "returns" in tokens:
            means["explained_variance"] = 1 - variances["_residual"] / max(variances["_returns"], 1e-12)
        means |= {"reward/std": variances["reward/mean"] ** 0.5, "kl_coef": self.kl.beta}
        self.kl.update(means["kl/k1"], counts["kl/k1"])
        self._rollout_metrics = {name: value for name, value in means.items() if not name.startswith("_")}
        if self.log_samples_every and self._rollouts % self.log_samples_every == 0:
            kl = watched["kl/k1"].tolist()
            rows = [
                {"prompt": a.prompt, "response": a.response, "score": s, "kl": d, "finished": a.finished}
                for a, s, d in zip(answers[:8], scores.total.tolist(), kl, strict=False)
            ]
            log_samples(self.trainer, rows)
        self._rollouts += 1

    # The update: from a minibatch to a loss.

    def step(self, batch: RolloutBatch) -> StepOutput:
        """One loss a response token: the policy's, the critic's, the entropy bonus and, for GRPO, the KL."""
        groups, known = batch.batch, batch.tokens
        hidden = response_hidden(self.policy, groups)
        logps, entropy = token_stats(
            self.policy, hidden, groups.targets, self.rollout.sampling, entropy_is_trained=self.entropy_coef != 0
        )
        policy = self.loss(logps, known["logps"], known["advantages"], groups.response_index)
        losses = policy.losses - self.entropy_coef * entropy
        metrics = {
            "policy_loss": policy.losses,
            "clip_fraction": policy.clipped,
            "approx_kl": policy.approx_kl,
            "ratio": policy.ratio,
            "entropy": entropy,
        }
        if self.advantage.needs_critic:
            values = self._values(hidden, groups)
            metrics["value_loss"] = self._value_loss(values, known)
            losses = losses + self.value_coef * metrics["value_loss"]
        if self.advantage.kl_in_loss:
            metrics["kl_loss"] = self.kl_estimator(logps, known["ref_logps"])
            losses = losses + self.kl.beta * metrics["kl_loss"]
        if self.ptx is not None and batch.text is not None:
            text_logps = response_logps(self.policy, batch.text)
            metrics["ptx_loss"] = -text_logps
            losses = losses - self.ptx.coefficient * self._mean_beside(text_logps, losses, batch)
        self._check_first_minibatch(policy.approx_kl)
        return StepOutput(losses, metrics)

    def _mean_beside(self, values: Tensor, losses: Tensor, batch: RolloutBatch) -> Tensor:
        """A number to add to each loss, so that the mean of the losses over all ranks grows by that of the values.

        The base divides by the number of losses alone, so the numbers of both are needed here. With accumulated batches
        this is so for each of them, and a batch with more response tokens weighs its text more.
        """
        counts = torch.tensor([len(losses), len(values)], device=self.device) * (0 if batch.is_filler else 1)
        totals = cast("Tensor", self.trainer.strategy.reduce(counts.double(), reduce_op="sum"))
        share: Tensor = values.sum() / len(losses) * float(totals[0] / totals[1].clamp(min=1))
        return share

    def _value_loss(self, values: Tensor, known: dict[str, Tensor]) -> Tensor:
        if self.value_clip is None:
            return (values - known["returns"]).square() / 2
        return clipped_value_loss(values, known["values"], known["returns"], self.value_clip)

    def _check_first_minibatch(self, approx_kl: Tensor) -> None:
        """Before the first step on a rollout the policy is the one that sampled it: whatever differs is a bug or a setting."""
        if self._is_first_minibatch and float(approx_kl.mean()) > STALE:
            raise UserError(
                f"The policy differs from itself: before the first step on a rollout the KL to the sampling policy is "
                f"{float(approx_kl.mean()):.2g} nats a token instead of 0. Something in the policy is random or depends on "
                "the batch; switch off dropout, or train in a higher precision."
            )
        self._is_first_minibatch = False

    def on_step_metrics(self, means: dict[str, float]) -> None:
        """Logs what the rollout in use was, and ends an update that has gone far enough."""
        for name, value in self._rollout_metrics.items():
            self.log(f"train/{name}", value, prog_bar=name in self.prog_bar)
        if self.target_kl is not None and self._loader is not None and means["approx_kl"] > self.target_kl:
            self._loader.stop_update()

    def validation_step(self, batch: PromptBatch, batch_idx: int) -> None:
        """Samples one response to each prompt and logs its score and KL."""
        groups, answers = sampled_groups(self.engine, self.tokenizer, batch, 1)
        self.reward.to(self.device)
        rollout = Rollout(groups, self.collate, batch.is_filler)
        of_all = rollout.minibatch(range(len(groups))).batch
        logps, ref_logps, _ = self._score_tokens(rollout)
        scores = self.reward(answers)
        metrics = {
            "reward/mean": scores.total,
            "kl/k1": sum_by_response(k1(logps, ref_logps), of_all.response_index, of_all.n_responses),
            "response_length/mean": of_all.response_lengths,
            "eos_rate": torch.tensor([answer.finished for answer in answers]),
            **{f"reward/{name}": values for name, values in scores.components.items()},
        }
        self.log_validation({name: values.to(self.device) for name, values in metrics.items()}, batch.is_filler)

    # What a checkpoint and the run folder keep.

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Adds the KL coefficient, the reward's running statistics, and what is logged of the rollout in use."""
        super().on_save_checkpoint(checkpoint)
        checkpoint["ppo"] = {
            "kl": self.kl.state_dict(),
            "reward": self.reward.state_dict(),
            "rollouts": self._rollouts,
            "rollout_metrics": self._rollout_metrics,
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Takes them back."""
        super().on_load_checkpoint(checkpoint)
        state = checkpoint["ppo"]
        self.kl.load_state_dict(state["kl"])
        self.reward.load_state_dict(state["reward"])
        self._rollouts, self._rollout_metrics = state["rollouts"], dict(state["rollout_metrics"])

    def export(self, folder: str | Path) -> None:
        """Writes the policy, and beside it the value head or, in `critic/`, the critic."""
        is_first = self.global_rank == 0
        save_model(self.policy, self.tokenizer, folder, write=is_first)
        if self.advantage.needs_critic and self.critic_config is not None:
            save_model(self.critic, self.tokenizer, Path(folder) / "critic", write=is_first)
        elif self.advantage.needs_critic:
            save_value_head(self.value_head, folder, write=is_first)
