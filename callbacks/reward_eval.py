"""The reward of the policy's samples on fixed prompts."""

from __future__ import annotations

import torch
from lightning.pytorch import LightningModule, Trainer

from callbacks.base import Evaluation, ask
from callbacks.estimates import over_prompts
from callbacks.prompts import PromptSet, over_ranks
from lit_align.feedback import RewardSource
from lit_align.rollout import RolloutConfig


class RewardEval(Evaluation):
    """What a reward source says of samples of the policy; any source, also one that is not trained on.

    Metrics: `eval/reward/mean` and `eval/reward/std_error`, that of drawing other responses to the same prompts; and the mean
    of each component of the source, `eval/reward/<component>`.

    Args:
        prompts: Prompts that are not trained on, as `PromptData.val` names them.
        reward: What scores responses.
        rollout: How responses are sampled.
        every_n_steps: Optimiser steps between two measurements.
        n_prompts: How many of the prompts, from the first on.
        k: Responses to each.
        name: Stands for `reward` in the metrics' names.
        at_start: Whether to measure before the first step too.
        seed: Of the responses, the same at each measurement.
        max_prompt_length: Tokens of a prompt; a longer one loses its beginning.
    """

    def __init__(
        self,
        prompts: str,
        reward: RewardSource,
        rollout: RolloutConfig,
        every_n_steps: int,
        n_prompts: int = 128,
        k: int = 1,
        name: str = "reward",
        at_start: bool = True,
        seed: int = 0,
        max_prompt_length: int = 512,
    ) -> None:
        super().__init__(name, every_n_steps, at_start, seed)
        self.prompts = PromptSet(prompts, n_prompts, k, rollout, max_prompt_length)
        self.reward = reward

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Reads the prompts, and shows the reward the policy."""
        ask(pl_module, "tokenizer", self)
        self.reward.attach(ask(pl_module, "policy", self))
        _ = self.prompts.groups

    def evaluate(self, trainer: Trainer, module: LightningModule) -> dict[str, float]:
        """Samples and scores."""
        answers = self.prompts.sample(trainer, ask(module, "policy", self), ask(module, "tokenizer", self))
        self.reward.to(module.device)
        scores = self.reward(answers)
        names = list(scores.components)
        table = torch.stack([scores.total, *(scores.components[name] for name in names)], dim=1)
        table = over_ranks(table.reshape(len(answers) // self.prompts.k, self.prompts.k, 1 + len(names)))
        mean, error = over_prompts(table[..., 0])
        components = table[..., 1:].double().mean(dim=(0, 1)).tolist()
        return {f"eval/{self.name}/mean": mean, f"eval/{self.name}/std_error": error} | {
            f"eval/{self.name}/{name}": value for name, value in zip(names, components, strict=True)
        }
