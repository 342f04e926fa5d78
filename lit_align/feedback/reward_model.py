"""A trained reward model as the reward."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import torch
from transformers import PreTrainedModel

from lit_align.errors import UserError
from lit_align.feedback.reading import AnswerReader
from lit_align.feedback.source import Answer, RewardSource, Scores
from lit_align.models import ModelConfig, gathered, load_reward_model, placed


class RewardModelReward(RewardSource):
    """The scalar of a reward model: one trained here, or any sequence classifier of a decoder architecture.

    It reads text, so it has its own tokenizer and chat template, and its text is encoded by the code that encodes training
    data. A finished response ends as in training, with EOS or the template's end of turn; one that was cut has no end.
    The model is loaded at the first call, and frozen. It computes in its own `dtype`, whatever the Trainer's precision.

    Where the model's configuration has a `reward_bias`, as those exported here do, it is added.

    Args:
        model: The reward model, with its tokenizer.
        batch_size: Answers that the model reads at once.
        max_length: Tokens of prompt and response together; a longer prompt loses its beginning, then a response its end.
    """

    def __init__(self, model: ModelConfig, batch_size: int = 32, max_length: int = 1024) -> None:
        if model.lora is not None:
            raise UserError(
                "RewardModelReward: nothing is trained here, so model.lora would have no effect. Leave it out; for a reward "
                "model that is an adapter to the policy's own weights, take AdapterReward."
            )
        model.refuse_training("RewardModelReward")
        self.model_config = model
        self._reader = AnswerReader(model.path, model, batch_size, max_length)
        self._device = torch.device("cpu")
        self._policy: Any = None

    def attach(self, policy: Any) -> None:
        """Notes the policy: where that is sharded, the reward model is sharded beside it."""
        self._policy = policy

    def to(self, device: torch.device | str) -> None:
        """Moves the model, now or when it is loaded."""
        self._device = torch.device(device)
        if "model" in vars(self):
            placed(self.model, self._device, self._policy)

    @cached_property
    def model(self) -> PreTrainedModel:
        """The reward model, in eval mode, without gradients.

        Raises:
            UserError: As `load_reward_model`, or the folder holds a model without a reward head.
        """
        model = load_reward_model(self.model_config)
        kinds = model.config.architectures or []
        if self.model_config.init == "pretrained" and not any("SequenceClassification" in kind for kind in kinds):
            raise UserError(
                f"{self.model_config.path!r} holds a {', '.join(kinds) or 'model of no known kind'} and no reward head, so its "
                "rewards would be random. Name a folder that the RewardModel method exported, or another sequence classifier."
            )
        frozen: PreTrainedModel = placed(model.requires_grad_(False).eval(), self._device, self._policy)
        return frozen

    def __call__(self, answers: Sequence[Answer]) -> Scores:
        """The model's rewards.

        Raises:
            UserError: The chat template refuses a prompt, or a reward is not finite.
        """
        bias = getattr(self.model.config, "reward_bias", 0.0)
        # Ranks have answers of different lengths, and run the model different numbers of times.
        with gathered(self.model):
            return Scores(self._reader.rewards(self.model, answers, bias, self._device), {})
