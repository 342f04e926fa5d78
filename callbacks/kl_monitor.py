"""How far the policy is from its reference, on fixed prompts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from torch import Tensor

from callbacks.base import Evaluation, ask
from callbacks.compared_with import ComparedWith
from callbacks.estimates import over_prompts
from callbacks.prompts import PromptSet, over_ranks
from callbacks.tables import log_table
from callbacks.token_kl import ESTIMATORS, answer_kls
from lit_align.data.mini_instruct import enumerated_policy
from lit_align.errors import UserError
from lit_align.exact import kl_divergence
from lit_align.feedback import Answer
from lit_align.models import Sampling
from lit_align.models.fingerprint import fingerprint
from lit_align.rollout import RolloutConfig, gathered

TOO_LOW = 4.0
"""Standard errors below 0 at which chance is no explanation any more: once in 30,000."""


class KLMonitor(Evaluation):
    """KL of the policy to its reference on fixed prompts, by three estimators with their standard errors.

    The reference is the module's; where a method has none, as SFT, the policy as it was when the run began. Warns once above
    `warn_at` and ends the run above `stop_at`, both by the estimator with the least variance, `full`.

    Metrics: `eval/kl/k1`, `eval/kl/k3` and `eval/kl/full`, KL of a response, nats, and each with `_std_error`, that of
    drawing other responses to the same prompts; `eval/kl/exact` where asked for. `<run>/eval/kl_by_position.csv` has what
    each position adds; a sum over positions is the whole.

    Args:
        prompts: Prompts that are not trained on, as `PromptData.val` names them.
        rollout: How responses are sampled. The KL is that of policy and reference at its temperature.
        every_n_steps: Optimiser steps between two measurements.
        n_prompts: How many of the prompts, from the first on.
        k: Responses to each.
        warn_at: KL, nats, above which to warn, once a run.
        stop_at: KL, nats, above which to end the run.
        exact: Also enumerate all responses, which only `mini_instruct` allows; it takes some seconds.
        name: Stands for `kl` in the metrics' names.
        at_start: Whether to measure before the first step too.
        seed: Of the responses, the same at each measurement.
        max_prompt_length: Tokens of a prompt; a longer one loses its beginning.
        batch_size: Responses that the models read at once.
    """

    def __init__(
        self,
        prompts: str,
        rollout: RolloutConfig,
        every_n_steps: int,
        n_prompts: int = 64,
        k: int = 4,
        warn_at: float | None = None,
        stop_at: float | None = None,
        exact: bool = False,
        name: str = "kl",
        at_start: bool = True,
        seed: int = 0,
        max_prompt_length: int = 512,
        batch_size: int = 32,
    ) -> None:
        super().__init__(name, every_n_steps, at_start, seed)
        if rollout.sampling.top_k or rollout.sampling.top_p < 1:
            raise UserError(
                "KLMonitor: a policy cut by top_k or top_p has infinite KL to any reference that is cut elsewhere. Leave both "
                "out of rollout.sampling; a temperature is fine."
            )
        if exact and (prompts != "mini_instruct" or rollout.sampling != Sampling()):
            raise UserError("KLMonitor: exact needs prompts: mini_instruct and temperature 1; leave it out.")
        if warn_at is not None and stop_at is not None and warn_at >= stop_at:
            raise UserError(f"KLMonitor: warn_at ({warn_at}) has no effect unless it is below stop_at ({stop_at}).")
        self.prompts = PromptSet(prompts, n_prompts, k, rollout, max_prompt_length)
        self.warn_at = warn_at
        self.stop_at = stop_at
        self.exact = exact
        self.batch_size = batch_size
        self.compared_with = ComparedWith(self)
        self._said: list[str] = []
        self._last_kl: float | None = None
        self._ref_table: tuple[str, Tensor] | None = None

    def state_dict(self) -> dict[str, Any]:
        """Adds which warnings were given, the last KL, and the fingerprint of a reference of its own."""
        own = {"said": self._said, "last_kl": self._last_kl, "reference": self.compared_with.state()}
        return super().state_dict() | own

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes them back."""
        super().load_state_dict(state_dict)
        self._said, self._last_kl = list(state_dict["said"]), state_dict["last_kl"]
        self.compared_with.load_state(state_dict["reference"])

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Reads the prompts, and keeps the policy where there is no other reference."""
        ask(pl_module, "policy", self)
        ask(pl_module, "tokenizer", self)
        _ = self.prompts.texts
        self.compared_with.prepare(trainer, pl_module)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Ends a resumed run that was beyond the limit already."""
        super().on_train_start(trainer, pl_module)
        if self._last_kl is not None:
            self._stop_if_beyond(trainer, self._last_kl)

    def evaluate(self, trainer: Trainer, module: LightningModule) -> dict[str, float]:
        """Samples, and measures the KL of every response token."""
        tokenizer = ask(module, "tokenizer", self)
        answers = self.prompts.sample(trainer, ask(module, "policy", self), tokenizer)
        reference = self.compared_with.model(module)
        values = over_ranks(self._table(trainer, module, reference, answers))  # (X, K, T, 1 + estimators)
        reached = values[..., 0].mean(dim=(0, 1)).tolist()
        rows = [
            {"position": position, "reached": share} for position, share in enumerate(reached, start=1) if share > 0
        ]
        metrics: dict[str, float] = {}
        for number, estimator in enumerate(ESTIMATORS, start=1):
            every = values[..., number]
            mean, error = over_prompts(every.sum(dim=2))
            metrics |= {f"eval/{self.name}/{estimator}": mean, f"eval/{self.name}/{estimator}_std_error": error}
            for position, row in enumerate(rows):
                row[estimator], row[f"{estimator}_std_error"] = over_prompts(every[:, :, position])
        if self.exact:
            metrics[f"eval/{self.name}/exact"] = self._exact_kl(module, reference, tokenizer)
        log_table(trainer, f"{self.name}_by_position", rows)
        return metrics

    def _table(self, trainer: Trainer, module: LightningModule, reference: Any, answers: list[Answer]) -> Tensor:
        """Whether each position of each answer was reached, and the KL estimates there, `(x, K, T, 4)`; 0 after the end."""
        k, temperature = self.prompts.k, self.prompts.rollout.sampling.temperature
        table = torch.zeros(len(answers), self.prompts.rollout.max_new_tokens, 1 + len(ESTIMATORS))
        every = answer_kls(trainer, module, reference, answers, temperature, self.batch_size)
        for row, kls in zip(table, every, strict=True):
            row[: len(kls.k1)] = torch.stack([torch.ones_like(kls.k1), *kls], dim=1)
        return table.reshape(len(answers) // k, k, *table.shape[1:])

    def _exact_kl(self, module: LightningModule, reference: Any, tokenizer: Any) -> float:
        """By enumeration; the reference is enumerated again only after it has changed."""
        which = fingerprint(reference)
        if self._ref_table is None or self._ref_table[0] != which:
            self._ref_table = which, enumerated_policy(reference, tokenizer).logps
        with gathered(policy := ask(module, "policy", self)):
            logps = enumerated_policy(policy, tokenizer).logps
        return kl_divergence(logps, self._ref_table[1])[: len(self.prompts.texts)].mean().item()

    def react(self, trainer: Trainer, metrics: Mapping[str, float]) -> None:
        """Warns, explains a negative estimate, and stops."""
        kl, step = metrics[f"eval/{self.name}/full"], trainer.global_step
        self._last_kl = kl
        k1, error = metrics[f"eval/{self.name}/k1"], metrics[f"eval/{self.name}/k1_std_error"]
        if k1 < -TOO_LOW * error:
            self._say(
                "wrong",
                f"eval/{self.name}/k1 is {k1:.3g} nats at step {step}, {-k1 / error:.0f} standard errors below 0, and a KL is "
                "never negative: the responses do not come from the policy that is compared. Look for something random in "
                "the policy, or a precision too low for its log-probabilities.",
            )
        elif k1 < 0 and "noise" not in self._said:
            self._said.append("noise")
            rank_zero_info(
                f"eval/{self.name}/k1 is {k1:.3g} nats at step {step}. That is chance: it averages differences of both signs, "
                f"with a standard error of {error:.2g}. Read eval/{self.name}/full ({kl:.3g}), which is never negative."
            )
        if self.warn_at is not None and kl > self.warn_at:
            self._say(
                "far",
                f"The policy is {kl:.3g} nats from its reference at step {step}, above warn_at ({self.warn_at}): a smaller "
                "learning rate or a larger beta holds it closer.",
            )
        self._stop_if_beyond(trainer, kl)

    def _stop_if_beyond(self, trainer: Trainer, kl: float) -> None:
        if self.stop_at is not None and kl > self.stop_at:
            rank_zero_info(f"KLMonitor ends the run: {kl:.3g} nats from the reference, above stop_at ({self.stop_at}).")
            trainer.should_stop = True

    def _say(self, what: str, sentence: str) -> None:
        """Warns, once a run."""
        if what not in self._said:
            self._said.append(what)
            rank_zero_warn(sentence)
