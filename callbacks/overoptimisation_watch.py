"""Whether the policy follows its reward too far."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from torch import Tensor

from callbacks.base import Evaluation, ask, seed_generators
from callbacks.compared_with import ComparedWith
from callbacks.estimates import over_prompts
from callbacks.prompts import PromptSet, over_ranks
from callbacks.text_shape import Spread, distinct_bigrams, rare, repetition, spread
from callbacks.token_kl import answer_batches, answer_kls
from lit_align.errors import UserError
from lit_align.feedback import Answer, RewardSource
from lit_align.models.logprobs import response_hidden, token_stats
from lit_align.rollout import RolloutConfig

ERRORS = 3.0
"""Standard errors of a difference that count as more than chance, though the best of many measurements is a lucky one."""

WATCHED = {"length": 0, "eos_rate": -1, "repetition": 1}
"""What the shape of a response is watched for, and in which direction it goes wrong; 0 for both."""

COLUMNS = ("length", "eos_rate", "repetition", "distinct_2", "entropy", "kl", "proxy")


class OveroptimisationWatch(Evaluation):
    """Speaks up, once, when the reward that is followed and what it stands for part (Gao et al. 2022, 2210.10760).

    What is followed is the proxy. That the two part is seen in either of two ways, while the proxy still rises:

    - **By the shape of the responses.** The mean length, share that ends by itself, or repetition is more than `limit` standard
      deviations away from what it is for the reference, those of single responses of the reference. Length counts in both
      directions, fewer ends and more repetition in one.
    - **By a reward that is held out**, where there is one: it has fallen by more than three standard errors from its best, and
      the proxy is higher than it was there. A held-out reward model helps as far as it does not err where the proxy errs.

    Metrics: `eval/watch/proxy` and `/proxy_std_error`, `/held_out` and `/held_out_std_error`, `/sqrt_kl` (square root of the KL
    of a response to the reference, nats), `/length` (tokens), `/eos_rate`, `/repetition` (share of a response's tokens that it
    has had before), `/distinct_2` (different bigrams among those of all responses to a prompt, as a share), `/entropy` (of
    the next token, nats); `/length_shift`, `/eos_rate_shift` and `/repetition_shift`, in the reference's standard deviations;
    `/parted`, 1 from when they have parted. Entropy and diversity raise no warning: a policy that improves loses both.

    Args:
        prompts: Prompts that are not trained on, as `PromptData.val` names them.
        proxy: The reward that is followed.
        rollout: How responses are sampled.
        every_n_steps: Optimiser steps between two measurements.
        held_out: A reward that is not followed: a model trained on other rows, or with another architecture.
        limit: How far the shape of responses may move, in standard deviations of single responses of the reference.
        stop: Whether to end the run then, instead of only saying so.
        n_prompts: How many of the prompts, from the first on.
        k: Responses to each.
        name: Stands for `watch` in the metrics' names.
        seed: Of the responses, the same at each measurement.
        max_prompt_length: Tokens of a prompt; a longer one loses its beginning.
    """

    def __init__(
        self,
        prompts: str,
        proxy: RewardSource,
        rollout: RolloutConfig,
        every_n_steps: int,
        held_out: RewardSource | None = None,
        limit: float = 1.0,
        stop: bool = False,
        n_prompts: int = 64,
        k: int = 4,
        name: str = "watch",
        seed: int = 0,
        max_prompt_length: int = 512,
    ) -> None:
        super().__init__(name, every_n_steps, True, seed)
        if limit <= 0:
            raise UserError(f"OveroptimisationWatch: limit must be above 0 standard deviations, got {limit}.")
        if rollout.sampling.top_k or rollout.sampling.top_p < 1:
            raise UserError(
                "OveroptimisationWatch: a policy cut by top_k or top_p has infinite KL to any reference that is cut elsewhere. "
                "Leave both out of rollout.sampling; a temperature is fine."
            )
        self.prompts = PromptSet(prompts, n_prompts, k, rollout, max_prompt_length)
        self.rewards = {"proxy": proxy} | ({} if held_out is None else {"held_out": held_out})
        self.limit = limit
        self.stop = stop
        self.compared_with = ComparedWith(self)
        self._of_reference: dict[str, Spread] = {}
        self._best: dict[str, float] | None = None
        self._parted = False

    def state_dict(self) -> dict[str, Any]:
        """Adds what the reference is like, the best held-out reward, and whether they have parted."""
        of_reference = {name: list(of_name) for name, of_name in self._of_reference.items()}
        own = {"of_reference": of_reference, "best": self._best, "parted": self._parted}
        return super().state_dict() | own | {"reference": self.compared_with.state()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes them back."""
        super().load_state_dict(state_dict)
        self._of_reference = {name: Spread(*values) for name, values in state_dict["of_reference"].items()}
        self._best, self._parted = state_dict["best"], state_dict["parted"]
        self.compared_with.load_state(state_dict["reference"])

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Reads the prompts, shows the rewards the policy, and keeps the policy where there is no other reference."""
        ask(pl_module, "tokenizer", self)
        policy = ask(pl_module, "policy", self)
        for reward in self.rewards.values():
            reward.attach(policy)
        _ = self.prompts.texts
        self.compared_with.prepare(trainer, pl_module)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Ends a resumed run that had been ended already."""
        super().on_train_start(trainer, pl_module)
        self._stop_if_parted(trainer)

    def evaluate(self, trainer: Trainer, module: LightningModule) -> dict[str, float]:
        """Samples, scores, and compares with the reference, which is sampled the first time."""
        reference = self.compared_with.model(module)
        if not self._of_reference:
            values = over_ranks(self._measured(trainer, module, reference, reference))
            least = {"length": 1.0, "eos_rate": rare(values[..., 0].numel())}
            self._of_reference = {
                name: spread(values[..., column], least.get(name))
                for column, name in enumerate(self._columns)
                if name in WATCHED or name == "proxy"
            }
            seed_generators(trainer, self.seed)
        values = over_ranks(self._measured(trainer, module, ask(module, "policy", self), reference))
        means = dict(zip(self._columns, values.double().mean(dim=(0, 1)).tolist(), strict=True))
        metrics = {"sqrt_kl": max(means.pop("kl"), 0.0) ** 0.5, **means}
        metrics |= {f"{name}_shift": self._of_reference[name].shift(means[name]) for name in WATCHED}
        for name in self.rewards:
            metrics[f"{name}_std_error"] = over_prompts(values[..., self._columns.index(name)]).std_error
        metrics["parted"] = float(self._parted or bool(self._reasons(metrics)))
        return {f"eval/{self.name}/{name}": value for name, value in metrics.items()}

    @property
    def _columns(self) -> list[str]:
        return [*COLUMNS, *(name for name in self.rewards if name != "proxy")]

    def _measured(self, trainer: Trainer, module: LightningModule, model: Any, reference: Any) -> Tensor:
        """What one model says to this rank's prompts, by `_columns`, `(x, K, C)`. The KL is the policy's, and 0 for another."""
        k, sampling = self.prompts.k, self.prompts.rollout.sampling
        answers = self.prompts.sample(trainer, model, ask(module, "tokenizer", self))
        ids = [answer.response_ids for answer in answers]
        distinct = [distinct_bigrams(ids[start : start + k]) for start in range(0, len(ids), k) for _ in range(k)]
        entropies: list[float] = []
        for batch in answer_batches(trainer, module, answers, None if model is module.policy else model):
            stats = token_stats(model, response_hidden(model, batch), batch.targets, sampling)
            parts = torch.split(stats.entropy.float().cpu(), batch.response_lengths.tolist())
            entropies += [float(part.mean()) for part in parts]
        kls = [0.0] * len(ids)
        if model is not reference:
            kls = [
                float(kls.full.sum()) for kls in answer_kls(trainer, module, reference, answers, sampling.temperature)
            ]
        columns: dict[str, Sequence[float]] = {
            "length": [len(of_answer) for of_answer in ids],
            "eos_rate": [answer.finished for answer in answers],
            "repetition": [repetition(of_answer) for of_answer in ids],
            "distinct_2": distinct,
            "entropy": entropies,
            "kl": kls,
            **{name: self._scores(module, reward, answers) for name, reward in self.rewards.items()},
        }
        table = torch.tensor([[float(value) for value in columns[name]] for name in self._columns])
        return table.T.reshape(len(ids) // k, k, len(columns))

    @staticmethod
    def _scores(module: LightningModule, reward: RewardSource, answers: list[Answer]) -> list[float]:
        reward.to(module.device)
        scores: list[float] = reward(answers).total.tolist()
        return scores

    def _reasons(self, metrics: Mapping[str, float]) -> list[str]:
        """In what way proxy and responses have parted, by metrics without their prefix; empty if they have not."""
        gain = metrics["proxy"] - self._of_reference["proxy"].mean
        reasons = []
        if gain > ERRORS * metrics["proxy_std_error"]:
            for name, direction in WATCHED.items():
                shift = metrics[f"{name}_shift"]
                if abs(shift) > self.limit and direction * shift >= 0:
                    was = self._of_reference[name].mean
                    reasons.append(
                        f"the mean {name.replace('_', ' ')} is {metrics[name]:.3g} where the reference has {was:.3g}, which is "
                        f"{abs(shift):.1f} standard deviations of its responses away"
                    )
        best = self._best
        if best is not None and metrics["proxy"] > best["proxy"]:
            error = (best["held_out_std_error"] ** 2 + metrics["held_out_std_error"] ** 2) ** 0.5
            if (fall := best["held_out"] - metrics["held_out"]) > ERRORS * error:
                reasons.append(f"the held-out reward has fallen by {fall:.3g} from its best")
        return reasons

    def react(self, trainer: Trainer, metrics: Mapping[str, float]) -> None:
        """Warns, the first time, and stops if asked to."""
        own = {name.removeprefix(f"eval/{self.name}/"): value for name, value in metrics.items()}
        reasons = self._reasons(own)
        if reasons and not self._parted:
            self._parted = True
            gain = own["proxy"] - self._of_reference["proxy"].mean
            rank_zero_warn(
                f"The policy may be following its reward too far at step {trainer.global_step}: the reward has risen by "
                f"{gain:.3g} at {own['sqrt_kl']:.2g} sqrt(nats) from the reference, and {' and '.join(reasons)}. Read some "
                "responses; a larger KL coefficient or an earlier checkpoint is the remedy."
            )
        if "held_out" in own and (self._best is None or own["held_out"] > self._best["held_out"]):
            self._best = {name: own[name] for name in ("held_out", "held_out_std_error", "proxy")}
        self._stop_if_parted(trainer)

    def _stop_if_parted(self, trainer: Trainer) -> None:
        if self.stop and self._parted:
            rank_zero_info("OveroptimisationWatch ends the run: the reward and what it stands for have parted.")
            trainer.should_stop = True
