"""How often the policy's answers are preferred to those of something else, on fixed prompts."""

from __future__ import annotations

from typing import Any, Literal

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor

from callbacks import estimates
from callbacks.base import Evaluation, ask, seed_generators
from callbacks.compared_with import ComparedWith
from callbacks.prompts import PromptSet, over_ranks
from lit_align.feedback import Answer, Judge
from lit_align.models import ModelConfig, load_policy, load_tokenizer
from lit_align.rollout import RolloutConfig

TIE = 1e-6
"""A probability that is closer to a half than this is a tie: less is rounding."""


class WinRate(Evaluation):
    """How often a judge prefers the policy's answer to that of a baseline.

    Each comparison is judged with either answer first, and the two verdicts are averaged, so a judge that likes what it reads
    first decides nothing. More than a half is a win, a half a tie, which counts as half a win.

    Metrics: `eval/win_rate`, and `/low` and `/high`, the ends of its 95 % interval (Wilson's; see `estimates.win_rate`);
    `/length_controlled`, the rate for answers of equal length by a regression of our own (`estimates.length_controlled`), which
    is not AlpacaEval's number; `/ties`; `/probability`, the judge's mean probability instead of its verdict;
    `/order_agreement`, the share of comparisons in which both orders have the same winner; `/length_difference`, tokens that
    the policy's answers are longer by.

    Args:
        prompts: Prompts that are not trained on, as `PromptData.val` names them.
        judge: What compares two answers.
        rollout: How responses are sampled, also from the baseline.
        every_n_steps: Optimiser steps between two measurements.
        baseline: `reference`, the module's reference, or the policy as it was at the start where there is none; `rows`, the
            best response of each row; or a model.
        n_prompts: How many of the prompts, from the first on.
        k: Comparisons for each.
        name: Stands for `win_rate` in the metrics' names.
        at_start: Whether to measure before the first step too.
        seed: Of the responses, the same at each measurement.
        max_prompt_length: Tokens of a prompt; a longer one loses its beginning.
    """

    def __init__(
        self,
        prompts: str,
        judge: Judge,
        rollout: RolloutConfig,
        every_n_steps: int,
        baseline: Literal["reference", "rows"] | ModelConfig = "reference",
        n_prompts: int = 128,
        k: int = 1,
        name: str = "win_rate",
        at_start: bool = True,
        seed: int = 0,
        max_prompt_length: int = 512,
    ) -> None:
        super().__init__(name, every_n_steps, at_start, seed)
        if isinstance(baseline, ModelConfig):
            baseline.refuse_training("WinRate.baseline")
        self.prompts = PromptSet(prompts, n_prompts, k, rollout, max_prompt_length, with_responses=baseline == "rows")
        self.judge = judge
        self.baseline = baseline
        self.compared_with = ComparedWith(self)
        self._answers: list[Answer] | None = None

    def state_dict(self) -> dict[str, Any]:
        """Adds the fingerprint of a reference of its own."""
        return super().state_dict() | {"reference": self.compared_with.state()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes it back."""
        super().load_state_dict(state_dict)
        self.compared_with.load_state(state_dict["reference"])

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Reads the prompts, shows the judge the policy, and keeps the policy where there is no other reference."""
        ask(pl_module, "tokenizer", self)
        self.judge.attach(ask(pl_module, "policy", self))
        _ = self.prompts.groups
        self._answers = None
        if self.baseline == "reference":
            self.compared_with.prepare(trainer, pl_module)

    def evaluate(self, trainer: Trainer, module: LightningModule) -> dict[str, float]:
        """Samples, and has every pair judged in both orders."""
        ours = self.prompts.sample(trainer, ask(module, "policy", self), ask(module, "tokenizer", self))
        theirs = self._baseline_answers(trainer, module)
        self.judge.to(module.device)
        verdicts = self.judge.by_order(ours, theirs)
        differences = [len(a.response_ids) - len(b.response_ids) for a, b in zip(ours, theirs, strict=True)]
        table = torch.cat([verdicts.float().cpu(), torch.tensor(differences).float()[:, None]], dim=1)
        table = over_ranks(table.reshape(len(ours) // self.prompts.k, self.prompts.k, 3))
        return self._metrics(table)

    def _metrics(self, table: Tensor) -> dict[str, float]:
        """From the two verdicts and the difference of lengths of every comparison, `(X, K, 3)`."""
        verdicts, differences = table[..., :2], table[..., 2]
        scores = hard(verdicts.mean(dim=2))
        first, second = hard(verdicts).unbind(dim=2)
        rate, low, high = estimates.win_rate(scores)
        name = f"eval/{self.name}"
        return {
            name: rate,
            f"{name}/low": low,
            f"{name}/high": high,
            f"{name}/length_controlled": estimates.length_controlled(scores.flatten(), differences.flatten()),
            f"{name}/ties": (scores == 0.5).double().mean().item(),
            f"{name}/probability": verdicts.double().mean().item(),
            f"{name}/order_agreement": (first == second).double().mean().item(),
            f"{name}/length_difference": differences.double().mean().item(),
        }

    def _baseline_answers(self, trainer: Trainer, module: LightningModule) -> list[Answer]:
        """Those of rows and of a model that never changes are kept; a reference may move, so it is sampled every time."""
        # Other numbers than the policy had: while the two are equal, they would say the same things.
        seed_generators(trainer, self.seed + 1)
        tokenizer = ask(module, "tokenizer", self)
        if self.baseline == "reference":
            return self.prompts.sample(trainer, self.compared_with.model(module), tokenizer)
        if self._answers is None and self.baseline == "rows":
            self._answers = self.prompts.row_answers(trainer, tokenizer)
        elif self._answers is None:
            assert isinstance(self.baseline, ModelConfig)
            model = load_policy(self.baseline).to(module.device)
            self._answers = self.prompts.sample(trainer, model, load_tokenizer(self.baseline))
        assert self._answers is not None
        return self._answers


def hard(probabilities: Tensor) -> Tensor:
    """1 where the first answer wins, a half for a tie, 0 where it loses; any shape."""
    return torch.where((probabilities - 0.5).abs() <= TIE, 0.5, (probabilities > 0.5).double())
