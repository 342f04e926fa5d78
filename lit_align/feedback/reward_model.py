"""A trained reward model as the reward."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from functools import cached_property

import torch
from transformers import PreTrainedModel

from lit_align.data.collate import padded
from lit_align.data.counts import Counts
from lit_align.data.encoding import Encoder, Lengths
from lit_align.errors import UserError
from lit_align.feedback.source import Answer, RewardSource, Scores, checked
from lit_align.groups import Group, TokenGroup
from lit_align.models import ModelConfig, load_reward_model, load_tokenizer, response_rewards

log = logging.getLogger(__name__)


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
        if batch_size < 1:
            raise UserError(f"RewardModelReward: batch_size must be at least 1, got {batch_size}.")
        self.model_config = model
        self.batch_size = batch_size
        self._counts = Counts()
        self._lengths = Lengths(max_length)
        self._device = torch.device("cpu")
        self._warned_of_cuts = False

    def to(self, device: torch.device | str) -> None:
        """Moves the model, now or when it is loaded."""
        self._device = torch.device(device)
        if "model" in vars(self):
            self.model.to(self._device)

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
        return model.requires_grad_(False).eval().to(self._device)

    @cached_property
    def encoder(self) -> Encoder:
        """Text to tokens of the reward model."""
        return Encoder(load_tokenizer(self.model_config), self._lengths, self._counts)

    @torch.no_grad()
    def __call__(self, answers: Sequence[Answer]) -> Scores:
        """The model's rewards.

        Raises:
            UserError: The chat template refuses a prompt, or a reward is not finite.
        """
        encoded = self._encode(answers)
        # Answers of about one length together, the longest first: memory that does not suffice is missed at once.
        order = sorted(range(len(encoded)), key=lambda i: -len(encoded[i].prompt) - len(encoded[i].responses[0]))
        rewards = torch.empty(len(encoded))
        bias = getattr(self.model.config, "reward_bias", 0.0)
        with torch.autocast(self._device.type, enabled=False):
            for start in range(0, len(order), self.batch_size):
                rows = order[start : start + self.batch_size]
                batch = padded([encoded[row] for row in rows], self.encoder.tokenizer.pad_token_id)
                rewards[rows] = (response_rewards(self.model, batch.to(self._device)) + bias).cpu()
        return Scores(checked(rewards, answers, f"The reward model {self.model_config.path!r}"), {})

    def _encode(self, answers: Sequence[Answer]) -> list[TokenGroup]:
        groups = (Group(a.prompt, (a.response,), source=f"answer {i}") for i, a in enumerate(answers))
        encoded = [tokens for _, tokens in self.encoder.encode(groups)]
        cut = self._counts.prompts_cut + self._counts.responses_cut
        if cut and not self._warned_of_cuts:
            self._warned_of_cuts = True
            log.warning("Reward model %r: %s. max_length decides.", self.model_config.path, self._counts)
        return [
            tokens if answer.finished else self._without_end(tokens)
            for tokens, answer in zip(encoded, answers, strict=True)
        ]

    def _without_end(self, tokens: TokenGroup) -> TokenGroup:
        response = list(tokens.responses[0])
        if len(response) > 1 and response[-1] in self.encoder.special:
            response = response[:-1]
        return tokens._replace(responses=[response])
