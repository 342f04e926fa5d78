"""What alignment costs: how well the policy still predicts text, and does what nobody had preferences about."""

from __future__ import annotations

import math
from typing import Any

from lightning.pytorch import LightningModule, Trainer

from callbacks.base import Evaluation, ask
from callbacks.prompts import PromptSet
from callbacks.token_kl import answer_batches
from lit_align.data.mini_assistant import skill_scores, skills
from lit_align.feedback import sample_answers
from lit_align.models import response_logps
from lit_align.rollout import RolloutConfig
from lit_align.runtime import gather_per_rank


class AlignmentTax(Evaluation):
    """What alignment costs (Ouyang et al. 2022, 2203.02155, section 4.2: the alignment tax), against the start of the run.

    Metrics: `eval/tax/perplexity`, exp of the mean negative log-probability of a token of held-out responses, EOS included; and
    `/perplexity_ratio`, that by what it was at the first measurement, so 1.1 is a tenth more. With `skills` the scores of
    `lit_align.data.mini_assistant.skill_scores` on samples, `eval/tax/<skill>`, and `/<skill>_change`, that minus what it was
    at first.

    Args:
        texts: Rows that are not trained on, as `SFTData.val` names them; of several responses to a prompt the best.
        every_n_steps: Optimiser steps between two measurements.
        skills: How answers to the tests of `mini_assistant` are sampled; without it they are not.
        n_texts: How many of the rows, from the first on.
        max_response_length: Tokens of a text's response; a longer one loses its end.
        name: Stands for `tax` in the metrics' names.
        seed: Of the samples, the same at each measurement.
        max_prompt_length: Tokens of a prompt; a longer one loses its beginning.
    """

    def __init__(
        self,
        texts: str,
        every_n_steps: int,
        skills: RolloutConfig | None = None,
        n_texts: int = 256,
        max_response_length: int = 512,
        name: str = "tax",
        seed: int = 0,
        max_prompt_length: int = 512,
    ) -> None:
        super().__init__(name, every_n_steps, True, seed)
        rollout = RolloutConfig(max_response_length)
        self.texts = PromptSet(texts, n_texts, 1, rollout, max_prompt_length, with_responses=True, distinct=False)
        self.skills = skills
        self._first: dict[str, float] | None = None

    def state_dict(self) -> dict[str, Any]:
        """Adds the first measurement."""
        return super().state_dict() | {"first": self._first}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes it back."""
        super().load_state_dict(state_dict)
        self._first = state_dict["first"]

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Reads the texts."""
        ask(pl_module, "policy", self)
        ask(pl_module, "tokenizer", self)
        _ = self.texts.groups

    def evaluate(self, trainer: Trainer, module: LightningModule) -> dict[str, float]:
        """Perplexity and skills, now and against the first time."""
        now = {"perplexity": self._perplexity(trainer, module)} | self._skills(trainer, module)
        first = self._first = self._first or now
        metrics = dict(now)
        metrics["perplexity_ratio"] = now["perplexity"] / first["perplexity"]
        metrics |= {f"{name}_change": now[name] - first[name] for name in now if name != "perplexity" and name in first}
        return {f"eval/{self.name}/{name}": value for name, value in metrics.items()}

    def _perplexity(self, trainer: Trainer, module: LightningModule) -> float:
        """Over the tokens of all ranks' texts."""
        policy, total, count = ask(module, "policy", self), 0.0, 0
        texts = self.texts.row_answers(trainer, ask(module, "tokenizer", self))
        for batch in answer_batches(trainer, module, texts):
            logps = response_logps(policy, batch)
            total, count = total - float(logps.double().sum()), count + len(logps)
        sums = gather_per_rank((total, count))
        return math.exp(sum(nll for nll, _ in sums) / sum(tokens for _, tokens in sums))

    def _skills(self, trainer: Trainer, module: LightningModule) -> dict[str, float]:
        """Scores on the tests of mini_assistant, one answer each, shared out over ranks."""
        if self.skills is None:
            return {}
        prompts = [item.prompt for item in skills()][trainer.global_rank :: trainer.world_size]
        policy, tokenizer = ask(module, "policy", self), ask(module, "tokenizer", self)
        answers = sample_answers(policy, tokenizer, prompts, 1, self.skills)
        of_ranks = gather_per_rank([(str(answer.prompt), answer.response) for answer in answers])
        return skill_scores([pair for of_rank in of_ranks for pair in of_rank])
