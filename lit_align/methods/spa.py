"""Spread Preference Annotation: a few labelled pairs, then rounds in which the policy judges its own responses."""

from __future__ import annotations

import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal, cast

import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor

from lit_align.data import GroupLoader, PromptBatch, padded
from lit_align.errors import UserError
from lit_align.feedback import Answer, Judge, RewardSource
from lit_align.groups import GroupBatch, sum_by_response
from lit_align.losses import DPO as DPOLoss
from lit_align.losses.kl import k1, k3
from lit_align.losses.spa import SelfRefinement, preference_judgement, refined_loss
from lit_align.methods.base import AlignmentModule, StepOutput
from lit_align.methods.own_responses import joined, moments_over_ranks, sampled_groups
from lit_align.methods.pairs import pair_metrics, paired
from lit_align.methods.rounds import round_folder, write_round
from lit_align.methods.schedule import Schedule
from lit_align.methods.spa_stages import SeedPairs, SeedThenRounds, Stages, stages
from lit_align.models import (
    ModelConfig,
    MovingReference,
    Sampling,
    gathered,
    load_policy,
    moving_copy,
    response_hidden,
    save_model,
    token_logps,
)
from lit_align.models.extrapolated import extrapolated_logps
from lit_align.rollout import NativeEngine, RolloutConfig, stop_token_ids
from lit_align.rollout.loader import PositionedLoader, Rollout, RolloutBatch, RolloutLoader
from lit_align.runtime import gather_per_rank, log_samples

PLAIN = Sampling()


class SPA(AlignmentModule):
    """Spreads the preferences of a small labelled seed over prompts without labels, by the policy's own judgement.

    Kim et al. 2025 (2406.04412). First DPO on the seed. Then rounds, each on prompts of its own: the policy answers each prompt
    twice, prefers the answer whose likelihood has grown more since SFT, and learns these preferences by DPO, where labels that
    look wrong are smoothed. All of it is one epoch of the Trainer. In a round three models must not be confused:

    - the reference of the loss is the policy that the round began with, which also sampled it (`previous`, in checkpoints);
    - the judgement compares that policy with the SFT model, the same in every round (`reference_model()`, in no checkpoint);
    - noise detection extrapolates the policy of the moment away from `previous`.

    With LoRA `previous` is a second adapter, and the SFT model the weights without one.

    With each stage the optimiser's state and the schedule begin anew. Two answers that tie, as identical ones do, teach
    nothing: a departure from the released code, where the first one wins. A round is written to
    `<run>/rounds/round_<i>.rank<r>.jsonl`, and what it made of the policy to `<run>/rounds/round_<i>`.

    Metrics of a round, over its samples: `ties` (share of prompts whose answers tie), `identical` (whose answers are the same),
    `judge/confidence` (mean of |2p - 1|, 0 where all tie), with `gold` `gold/agreement` (share of labels that gold
    agrees with, its ties as a half) and `gold/mean`, `kl/k1` and `kl/k3` (KL of a response to the SFT model, nats),
    `response_length/mean`, `eos_rate`, `time/rollout`, `time/judge` (seconds). Of each optimiser step those of `DPO`, `round`,
    and with `refinement` `alpha`, `noisy` (share of pairs at or under the threshold), `flipped` (share whose m_g is negative),
    `threshold`.

    Args:
        policy: The model to train, as a rule the one that SFT made.
        prompts_per_round: Prompts of each round, over all devices, in the order in which they are shuffled. A prompt is in one
            round only. The paper's are 8,000, 20,000 and 30,000.
        seed: The labelled pairs. None begins with the first round, which then needs a judge.
        beta: Scale of the implicit reward, in the loss and in the judgement.
        refinement: How noisy labels are found and smoothed. None is plain DPO on the policy's own labels.
        judge: What prefers one answer. None is the direct preference judgement described above; a gold score, a reward model
            or a language model are other judges.
        judging_reference: What the direct judgement compares the policy with: `sft`; `previous`, the reference of the stage
            before (in round 1 the SFT model, in round i the policy that round i - 1 began with); or `none`, which judges by
            the likelihood alone.
        rollout: How answers are sampled.
        gold: A score to watch the labels with, never trained on.
        keep_rounds: Whether the model of each round, and that of the seed as round 0, is exported when it ends.
        optimizer: A class of `torch.optim`, or of your own, with its arguments.
        lr_scheduler: `{warmup, decay, final}`, shares of each stage.
    """

    prog_bar = ("loss", "round", "gold/agreement", "kl/k1")
    uses_token_weights = True

    def __init__(
        self,
        policy: ModelConfig,
        prompts_per_round: list[int],
        seed: SeedPairs | None = None,
        beta: float = 0.1,
        refinement: SelfRefinement | None = SelfRefinement(),
        judge: Judge | None = None,
        judging_reference: Literal["sft", "previous", "none"] = "sft",
        rollout: RolloutConfig = RolloutConfig(max_new_tokens=300, sampling=Sampling(temperature=0.7)),
        gold: RewardSource | None = None,
        keep_rounds: bool = True,
        optimizer: OptimizerCallable = lambda parameters: torch.optim.AdamW(parameters, lr=5e-7),
        lr_scheduler: Schedule | LRSchedulerCallable = Schedule(warmup=0.1, decay="cosine"),
    ) -> None:
        super().__init__(policy, optimizer, lr_scheduler)
        self.prompts_per_round = prompts_per_round
        self.seed = seed
        self.loss = DPOLoss(beta)
        self.refinement = refinement
        self.judge = judge
        self.judging_reference = judging_reference
        self.rollout = rollout
        self.gold = gold
        self.keep_rounds = keep_rounds
        self.collate = partial(padded, pad_id=self.tokenizer.pad_token_id)
        self._refuse()
        self.round = 0
        self.round_metrics: dict[str, float] = {}
        self._margins: list[Tensor] = []
        self._seen: list[Tensor] = []
        self._stages: Stages | None = None
        self._loader: SeedThenRounds | None = None

    def _refuse(self) -> None:
        """Refuses what cannot go well, or has no effect."""
        if not self.prompts_per_round or min(self.prompts_per_round) < 1:
            raise UserError(f"prompts_per_round must be whole numbers of 1 or more, got {self.prompts_per_round}.")
        rounds = len(self.prompts_per_round)
        if self.refinement is not None and len(self.refinement.lambdas) != rounds:
            raise UserError(
                f"refinement.lambdas has {len(self.refinement.lambdas)} numbers for {rounds} rounds: give one for each."
            )
        if self.judge is not None and self.judging_reference != "sft":
            raise UserError("judging_reference has no effect with a judge: leave one of them out.")
        if self.seed is None and self.judge is None and self.judging_reference != "none":
            raise UserError(
                "Without a seed the policy is its own judging reference in the first round, so that all answers tie: give seed "
                "pairs, a judge, or judging_reference: none. RewardJudge around ImplicitReward judges by any two models."
            )
        if not isinstance(self.lr_scheduler, Schedule):
            raise UserError(
                "SPA begins its schedule anew with each stage, which schedulers of torch cannot: set lr_scheduler to "
                "{warmup: 0.1, decay: cosine}, shares of each stage."
            )
        lora = self.policy_config.lora
        if self.policy_config.dropout or (lora is not None and lora.dropout):
            raise UserError(
                "policy.dropout and policy.lora.dropout must be 0: a policy with dropout is not the one that it is compared "
                "with."
            )

    def configure_model(self) -> None:
        """Loads the policy, and keeps it as it is then twice: as the fixed judging reference and as the first `previous`."""
        if hasattr(self, "policy"):
            return
        self.policy = load_policy(self.policy_config)
        self.keep_reference(self.policy)
        self.previous = moving_copy(self.policy)
        for source in (self.judge, self.gold):
            if source is not None:
                source.attach(self.policy)
        self.engine = NativeEngine(self.policy, self.rollout, stop_token_ids(self.tokenizer, self.policy))

    def train_loader(self, prompts: PositionedLoader) -> SeedThenRounds:
        """Wraps the loader of prompts into one that serves the seed and then rounds; the DataModule calls it."""
        seed: PositionedLoader | None = None
        if self.seed is not None:
            self.seed.data.trainer = self.trainer
            self.seed.data.setup("fit")
            seed = self.seed.data.rows_loader()
        self._stages = stages(
            self.trainer,
            cast("GroupLoader[Any]", prompts),
            self.prompts_per_round,
            seed,
            self.seed.epochs if self.seed else 0,
        )
        rounds = RolloutLoader(prompts, self.collect, self.collate, rounds=self._stages.rounds)
        self._loader = SeedThenRounds(seed, rounds, self._stages)
        return self._loader

    def configure_optimizers(self) -> Any:
        """The optimiser, and a schedule that begins anew with each stage."""
        optimizer = self.optimizer(self.parameter_groups())
        assert isinstance(self.lr_scheduler, Schedule)
        # Lightning makes the loaders, and with them the stages, when it is asked for the number of steps.
        assert self.trainer.estimated_stepping_batches
        assert self._stages is not None
        scheduler = self.lr_scheduler.restarting(optimizer, self._stages.steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def on_fit_start(self) -> None:
        """Brings the reference into the run's precision."""
        super().on_fit_start()
        # Lightning warns of modules in eval mode; without dropout it is all the same.
        self.previous.train()

    # A round: what happens between its prompts and its first batch of pairs.

    @torch.no_grad()
    def collect(self, batches: list[PromptBatch]) -> Rollout:
        """Ends the stage before, samples two answers to each prompt, judges them, and begins a round on the verdicts."""
        self._end_stage()
        began = time.perf_counter()
        prompts = joined(batches)
        groups, answers = sampled_groups(self.engine, self.tokenizer, prompts, 2)
        first, second = answers[::2], answers[1::2]
        sampled = time.perf_counter()
        everything = Rollout(groups, self.collate, prompts.is_filler)
        size = len(batches[0])
        policy, of_samples = self._scored(self.policy, everything, size)
        sft, sft_of_samples = self._scored(self.reference_model(), everything, size)
        verdict = self._verdict(first, second, policy, sft, everything, size)
        identical = torch.tensor([a.response_ids == b.response_ids for a, b in zip(first, second, strict=True)])
        verdict[identical] = 0.5
        gold = None
        if self.gold is not None:
            self.gold.to(self.device)
            gold = self.gold(answers).total.view(-1, 2)
        self._begin_round()
        watched = self._watched(verdict, gold, answers) | {
            "identical": identical,
            "kl/k1": self._sums(everything, k1(of_samples, sft_of_samples)),
            "kl/k3": self._sums(everything, k3(of_samples, sft_of_samples)),
        }
        self.round_metrics = moments_over_ranks(self, watched, prompts.is_filler).means
        self.round_metrics |= {"time/rollout": sampled - began, "time/judge": time.perf_counter() - sampled}
        self._write(first, second, verdict.tolist(), gold)
        scores = verdict.double().tolist()
        judged = [group._replace(scores=[p, 1 - p]) for group, p in zip(groups, scores, strict=True)]
        return Rollout(judged, self.collate, prompts.is_filler)

    def _end_stage(self) -> None:
        """Keeps what the stage that is over made of the policy. Every rank has to call."""
        made = self.round > 0 or self.seed is not None
        if self.keep_rounds and made and not self.trainer.fast_dev_run:  # type: ignore[attr-defined]
            self.export(round_folder(self.trainer, self.round))

    def _begin_round(self) -> None:
        """Makes the policy as it is the reference of a new round, whose optimiser knows nothing of what came before."""
        self.round += 1
        MovingReference(every="round").move(self.previous, self.policy)
        for optimizer in self.trainer.optimizers:
            optimizer.state.clear()
        self._seen = []

    def _scored(self, model: Any, rollout: Rollout, size: int) -> tuple[Tensor, Tensor]:
        """Log-probabilities of every token: under the model itself, and under the distribution sampled from it, `(M,)` each."""
        plain, sampled = [], []
        with torch.no_grad(), gathered(model), self.trainer.precision_plugin.forward_context():
            for begin in range(0, len(rollout.groups), size):
                batch = rollout.minibatch(range(begin, min(begin + size, len(rollout.groups)))).batch.to(self.device)
                hidden = response_hidden(model, batch)
                plain.append(token_logps(model, hidden, batch.targets, PLAIN).cpu())
                if self.rollout.sampling != PLAIN:
                    sampled.append(token_logps(model, hidden, batch.targets, self.rollout.sampling).cpu())
        return torch.cat(plain), torch.cat(sampled or plain)

    def _sums(self, rollout: Rollout, values: Tensor) -> Tensor:
        """Sums over responses of values of tokens, `(M,)` to `(N,)`."""
        lengths = torch.tensor([len(response) for group in rollout.groups for response in group.responses])
        return sum_by_response(values, torch.arange(len(lengths)).repeat_interleave(lengths), len(lengths))

    def _verdict(
        self,
        first: Sequence[Answer],
        second: Sequence[Answer],
        policy: Tensor,
        sft: Tensor,
        rollout: Rollout,
        size: int,
    ) -> Tensor:
        """Probability that each first answer is the better one, on the CPU, `(P,)`."""
        if self.judge is not None:
            self.judge.to(self.device)
            return self.judge(first, second).clone()
        reference = torch.zeros_like(policy)
        if self.judging_reference == "sft":
            reference = sft
        elif self.judging_reference == "previous":
            # Not moved yet: it is the policy that the stage before began with.
            reference, _ = self._scored(self.previous, rollout, size)
        log_ratios = self._sums(rollout, policy - reference).view(-1, 2)
        return preference_judgement(log_ratios[:, 0], log_ratios[:, 1], self.loss.beta)

    def _watched(self, verdict: Tensor, gold: Tensor | None, answers: Sequence[Answer]) -> dict[str, Tensor]:
        """What is averaged over the answers of a round."""
        has_label = verdict != 0.5
        watched = {
            "ties": ~has_label,
            "judge/confidence": (2 * verdict - 1).abs(),
            "response_length/mean": torch.tensor([len(answer.response_ids) for answer in answers]),
            "eos_rate": torch.tensor([answer.finished for answer in answers]),
        }
        if gold is not None:
            agrees = (verdict - 0.5).sign() * (gold[:, 0] - gold[:, 1]).sign()
            watched |= {"gold/agreement": (agrees[has_label] + 1) / 2, "gold/mean": gold.flatten()}
        return watched

    def _write(
        self, first: Sequence[Answer], second: Sequence[Answer], verdict: list[float], gold: Tensor | None
    ) -> None:
        """The round as a file, and a few of its pairs among the samples."""
        if self.trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        scores = None if gold is None else gold.T.flatten().tolist()
        write_round(self.trainer, self.round, first, second, verdict, scores)
        log_samples(self.trainer, [
            {"prompt": a.prompt, "response": a.response, "other": b.response, "probability": p, "round": self.round}
            for a, b, p in zip(first[:8], second[:8], verdict, strict=False)
        ])  # fmt: skip

    # The update: from pairs to a loss.

    def step(self, batch: RolloutBatch) -> StepOutput:
        """One loss a pair."""
        groups = batch.batch
        hidden = response_hidden(self.policy, groups)
        logps = token_logps(self.policy, hidden, groups.targets, PLAIN)
        with torch.no_grad():
            previous = self.previous.eval()
            ref_hidden = response_hidden(previous, groups)
            reference = groups.weighted_sums(token_logps(previous, ref_hidden, groups.targets, PLAIN))
        pairs = paired(groups, groups.weighted_sums(logps), reference)
        metrics = pair_metrics(self.loss, pairs)
        if self.refinement is None or self.round == 0:
            return StepOutput(self.loss(pairs), metrics)
        extrapolation = self.refinement.lambdas[self.round - 1]
        if extrapolation == 0:
            extrapolated = logps.detach()
        else:
            extrapolated = extrapolated_logps(self.policy, hidden, previous, ref_hidden, groups.targets, extrapolation)
        margins = self.loss.beta * paired(groups, groups.weighted_sums(extrapolated), reference).margin()
        is_noisy = margins <= self.refinement.threshold(self._seen)
        metrics |= {"noisy": is_noisy.float(), "flipped": (margins < 0).float()}
        self._take_in(margins, groups)
        return StepOutput(refined_loss(self.loss.beta * pairs.margin(), is_noisy, self._alpha()), metrics)

    def _alpha(self) -> float:
        """The alpha of this optimiser step."""
        assert self.refinement is not None
        assert self._stages is not None
        begin, end = self._stages.begin(self.round), self._stages.begin(self.round + 1)
        return self.refinement.alpha_at(self.trainer.global_step - begin, end - begin)

    def _take_in(self, margins: Tensor, groups: GroupBatch) -> None:
        """Keeps the margins of a batch for the threshold, which a local one learns now and a global one with the step."""
        assert self.refinement is not None
        real = margins[:0] if groups.is_filler else margins
        if self.refinement.threshold.is_local:
            self._remember(real)
            return
        # As long on every rank, whose batches have as many groups: a pair that ties has no margin.
        as_long = margins.new_full((groups.n_groups,), float("nan"))
        as_long[: len(real)] = real
        self._margins.append(as_long)

    def _remember(self, margins: Tensor) -> None:
        assert self.refinement is not None
        if len(margins):
            self._seen = self.refinement.threshold.kept([*self._seen, margins.detach().float().cpu()])

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """As in the base; then the threshold learns the margins of all ranks."""
        super().on_before_optimizer_step(optimizer)
        if self._margins:
            everyone = cast("Tensor", self.all_gather(torch.cat(self._margins))).flatten()
            self._remember(everyone[~everyone.isnan()])
            self._margins = []

    def on_step_metrics(self, means: dict[str, float]) -> None:
        """Logs what the round in use was, and how its labels are smoothed."""
        watched = {"round": float(self.round), **self.round_metrics}
        if self.refinement is not None and self.round > 0:
            watched |= {"alpha": self._alpha(), "threshold": self.refinement.threshold(self._seen)}
        for name, value in watched.items():
            self.log(f"train/{name}", value, prog_bar=name in self.prog_bar)

    def validation_step(self, batch: PromptBatch, batch_idx: int) -> None:
        """Samples one answer to each prompt and logs its KL to the SFT model, and its gold score if there is one."""
        groups, answers = sampled_groups(self.engine, self.tokenizer, batch, 1)
        rollout = Rollout(groups, self.collate, batch.is_filler)
        (_, policy), (_, sft) = (
            self._scored(model, rollout, len(groups)) for model in (self.policy, self.reference_model())
        )
        metrics = {
            "kl/k1": self._sums(rollout, k1(policy, sft)),
            "response_length/mean": torch.tensor([len(answer.response_ids) for answer in answers]),
            "eos_rate": torch.tensor([answer.finished for answer in answers]),
        }
        if self.gold is not None:
            self.gold.to(self.device)
            metrics["gold/mean"] = self.gold(answers).total
        self.log_validation({name: values.to(self.device) for name, values in metrics.items()}, batch.is_filler)

    # What a checkpoint and the run folder keep.

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Adds the round, what is logged of it, and the margins that each rank's threshold is made of."""
        super().on_save_checkpoint(checkpoint)
        checkpoint["spa"] = {
            "round": self.round,
            "round_metrics": self.round_metrics,
            "margins": gather_per_rank(self._seen),
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Takes them back."""
        super().on_load_checkpoint(checkpoint)
        state = checkpoint["spa"]
        self.round, self.round_metrics = state["round"], dict(state["round_metrics"])
        # With another number of ranks the DataModule refuses to go on.
        self._seen = list(state["margins"][self.global_rank % len(state["margins"])])

    def on_train_end(self) -> None:
        """Keeps what the last round made of the policy."""
        if self._loader is not None and self._loader.is_done:
            self._end_stage()

    def export(self, folder: str | Path) -> None:
        """Writes the policy."""
        save_model(self.policy, self.tokenizer, folder, write=self.global_rank == 0)
