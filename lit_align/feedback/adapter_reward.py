"""A reward model that shares the policy's trunk."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from lit_align.errors import UserError
from lit_align.feedback.reading import AnswerReader
from lit_align.feedback.source import Answer, RewardSource, Scores
from lit_align.models import ModelConfig, RewardOnTrunk, reward_on_trunk
from lit_align.models.logprobs import trunk


class AdapterReward(RewardSource):
    """A reward model trained with LoRA, on the policy's own frozen weights: of its own it has an adapter and a head.

    It gives the rewards that `RewardModelReward` gives with the merged model, and needs no second trunk. The policy must be
    trained with `lora` too, from the very weights that the reward model started from. It computes where the policy is and in
    the `dtype` of the policy's weights, without autocast.

    Args:
        adapter: The folder `model/adapter` of a RewardModel run with `lora`.
        batch_size: Answers that the model reads at once.
        max_length: Tokens of prompt and response together; a longer prompt loses its beginning, then a response its end.
    """

    def __init__(self, adapter: str, batch_size: int = 32, max_length: int = 1024) -> None:
        self.adapter = adapter
        self._reader = AnswerReader(adapter, ModelConfig(adapter), batch_size, max_length)
        self._policy: Any = None
        self._on_trunk: RewardOnTrunk | None = None

    def attach(self, policy: Any) -> None:
        """Builds the reward model around the policy's tensors.

        Raises:
            UserError: As `reward_on_trunk`.
        """
        self._policy, self._on_trunk = policy, reward_on_trunk(policy, self.adapter)

    def __call__(self, answers: Sequence[Answer]) -> Scores:
        """The model's rewards.

        Raises:
            UserError: There is no policy yet, its weights have become other tensors since, the chat template refuses a prompt,
                or a reward is not finite.
        """
        if self._on_trunk is None:
            raise UserError(
                "AdapterReward scores with the weights of the policy that PPO trains, and none was attached to it. Elsewhere "
                f"take RewardModelReward with the folder above {self.adapter!r}, which has the adapter merged in."
            )
        model, bias = self._on_trunk
        self._check_shared(model)
        like = model.get_input_embeddings().weight
        # The policy's tensors are where the Trainer brought them; the adapter, the head and the buffers follow. Outside of
        # inference mode, because they stay when validation is over.
        with torch.inference_mode(False):
            model.to(like.device)
            model.get_base_model().score.to(like.dtype)
        return Scores(self._reader.rewards(model, answers, bias, like.device), {})

    def _check_shared(self, model: Any) -> None:
        """Refuses a strategy that gave the policy other tensors, so that the reward model's would be a second copy."""
        shared = {id(parameter) for parameter in model.parameters()}
        if any(
            id(parameter) not in shared for parameter in trunk(self._policy).parameters() if not parameter.requires_grad
        ):
            raise UserError(
                "The policy's frozen weights are no longer the tensors that AdapterReward was attached to, as under a strategy "
                "that shards them. Train under ddp or on one device, or take RewardModelReward with the folder above "
                f"{self.adapter!r}."
            )
