"""What the policy says now, beside what the reference says, for people to read."""

from __future__ import annotations

from itertools import zip_longest
from typing import Any

from lightning.pytorch import LightningModule, Trainer

from callbacks.base import Evaluation, ask, seed_generators
from callbacks.compared_with import ComparedWith
from callbacks.prompts import PromptSet
from callbacks.tables import write_csv
from callbacks.token_kl import answer_kls
from lit_align.feedback import Answer, RewardSource
from lit_align.groups import Text
from lit_align.rollout import RolloutConfig
from lit_align.runtime import gather_per_rank, log_samples


class SampleTable(Evaluation):
    """Responses of the policy and of its reference to the same prompts, side by side, with their scores.

    Both are drawn with the same random numbers, so they are the same response until the models part. The table grows in
    `<run>/eval/samples.csv` and `<run>/samples.jsonl`, whose last step `compare` shows in its report, and is a table in wandb.
    A row has `prompt`, `response`, `score`, `reference`, `reference_score`, `kl` (log-probability of the response under the
    policy minus that under the reference, nats) and `finished` (False where the length limit cut the response).

    Args:
        prompts: Prompts that are not trained on, as `PromptData.val` names them.
        rollout: How responses are sampled.
        every_n_steps: Optimiser steps between two tables.
        reward: What scores both; without one the columns with scores are left out.
        n_prompts: How many of the prompts, from the first on.
        k: Responses to each.
        name: Of the CSV file.
        at_start: Whether to sample before the first step too.
        seed: Of the responses, the same each time.
        max_prompt_length: Tokens of a prompt; a longer one loses its beginning.
    """

    def __init__(
        self,
        prompts: str,
        rollout: RolloutConfig,
        every_n_steps: int,
        reward: RewardSource | None = None,
        n_prompts: int = 16,
        k: int = 1,
        name: str = "samples",
        at_start: bool = True,
        seed: int = 0,
        max_prompt_length: int = 512,
    ) -> None:
        super().__init__(name, every_n_steps, at_start, seed)
        self.prompts = PromptSet(prompts, n_prompts, k, rollout, max_prompt_length)
        self.reward = reward
        self.compared_with = ComparedWith(self)

    def state_dict(self) -> dict[str, Any]:
        """Adds the fingerprint of a reference of its own."""
        return super().state_dict() | {"reference": self.compared_with.state()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes it back."""
        super().load_state_dict(state_dict)
        self.compared_with.load_state(state_dict["reference"])

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Reads the prompts, and keeps the policy where there is no other reference."""
        ask(pl_module, "tokenizer", self)
        policy = ask(pl_module, "policy", self)
        if self.reward is not None:
            self.reward.attach(policy)
        _ = self.prompts.groups
        self.compared_with.prepare(trainer, pl_module)

    def evaluate(self, trainer: Trainer, module: LightningModule) -> dict[str, float]:
        """Samples from both, scores, and writes; there is nothing to average."""
        tokenizer, reference = ask(module, "tokenizer", self), self.compared_with.model(module)
        ours = self.prompts.sample(trainer, ask(module, "policy", self), tokenizer)
        seed_generators(trainer, self.seed)
        theirs = self.prompts.sample(trainer, reference, tokenizer)
        rows = in_order(gather_per_rank(self._rows(trainer, module, reference, ours, theirs)), self.prompts.k)
        write_csv(trainer, self.name, [row | {"prompt": as_text(row["prompt"])} for row in rows])
        log_samples(trainer, rows, source=self.name)
        return {}

    def _rows(
        self, trainer: Trainer, module: LightningModule, reference: Any, ours: list[Answer], theirs: list[Answer]
    ) -> list[dict[str, Any]]:
        temperature = self.prompts.rollout.sampling.temperature
        log_ratios = [float(kls.k1.sum()) for kls in answer_kls(trainer, module, reference, ours, temperature)]
        rows: list[dict[str, Any]] = [{"prompt": answer.prompt, "response": answer.response} for answer in ours]
        scores = self._scores(module, ours), self._scores(module, theirs)
        for number, (row, answer, other) in enumerate(zip(rows, ours, theirs, strict=True)):
            if scores[0]:
                row["score"] = scores[0][number]
            row["reference"] = other.response
            if scores[1]:
                row["reference_score"] = scores[1][number]
            row |= {"kl": log_ratios[number], "finished": answer.finished}
        return rows

    def _scores(self, module: LightningModule, answers: list[Answer]) -> list[float]:
        if self.reward is None:
            return []
        self.reward.to(module.device)
        scores: list[float] = self.reward(answers).total.tolist()
        return scores


def in_order(of_ranks: list[list[dict[str, Any]]], k: int) -> list[dict[str, Any]]:
    """Rows of every rank's prompts, K a prompt, in the order of all prompts, which ranks have in turn."""
    blocks = ([rows[start : start + k] for start in range(0, len(rows), k)] for rows in of_ranks)
    return [row for turn in zip_longest(*blocks, fillvalue=[]) for block in turn for row in block]


def as_text(prompt: Text) -> str:
    """A prompt in one cell: chat turns one below the other."""
    return prompt if isinstance(prompt, str) else "\n".join(f"{turn['role']}: {turn['content']}" for turn in prompt)
