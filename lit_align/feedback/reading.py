"""How a reward model reads answers: as the text that it was trained on."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from lit_align.data.collate import padded
from lit_align.data.counts import Counts
from lit_align.data.encoding import Encoder, Lengths
from lit_align.errors import UserError
from lit_align.feedback.source import Answer, checked
from lit_align.groups import Group, GroupBatch, TokenGroup
from lit_align.models import ModelConfig, load_tokenizer, response_rewards

log = logging.getLogger(__name__)


class AnswerReader:
    """Encodes answers by the code that encodes training data, and has a reward model score them.

    A finished response ends as in training, with EOS or the template's end of turn; one that was cut has no end.

    Args:
        name: Of the reward model, for what is said to people.
        tokenizer: Where its tokenizer is.
        batch_size: Answers that the model reads at once.
        max_length: Tokens of prompt and response together; a longer prompt loses its beginning, then a response its end.
    """

    def __init__(self, name: str, tokenizer: ModelConfig, batch_size: int, max_length: int) -> None:
        if batch_size < 1:
            raise UserError(f"{name}: batch_size must be at least 1, got {batch_size}.")
        self.name = name
        self.tokenizer_config = tokenizer
        self.batch_size = batch_size
        self._counts = Counts()
        self._lengths = Lengths(max_length)
        self._warned_of_cuts = False

    @cached_property
    def encoder(self) -> Encoder:
        """Text to tokens of the reward model."""
        return Encoder(load_tokenizer(self.tokenizer_config), self._lengths, self._counts)

    @torch.no_grad()
    def rewards(self, model: Any, answers: Sequence[Answer], bias: float, device: torch.device) -> Tensor:
        """Rewards of N answers, float32, on the CPU, `(N,)`.

        Args:
            model: The reward model, in eval mode, on `device`.
            answers: The N answers.
            bias: Added to each reward.
            device: Where the model computes.

        Raises:
            UserError: The chat template refuses a prompt, or a reward is not finite.
        """
        rewards = torch.empty(len(answers), dtype=torch.float32)
        with torch.autocast(device.type, enabled=False):
            for rows, batch in self.batches(answers):
                rewards[rows] = (response_rewards(model, batch.to(device)) + bias).cpu()
        return checked(rewards, answers, f"The reward model {self.name!r}")

    def batches(self, answers: Sequence[Answer]) -> Iterator[tuple[list[int], GroupBatch]]:
        """Encoded answers as batches, each with the index of its answers.

        Answers of about one length go together, so that no row is more than half padding. The longest come first: memory
        that does not suffice is missed at once.

        Raises:
            UserError: The chat template refuses a prompt.
        """
        encoded = self._encode(answers)
        lengths = [len(tokens.prompt) + len(tokens.responses[0]) for tokens in encoded]
        order = sorted(range(len(encoded)), key=lambda i: -lengths[i])
        while order:
            n = sum(2 * lengths[i] >= lengths[order[0]] for i in order[: self.batch_size])
            rows, order = order[:n], order[n:]
            yield rows, padded([encoded[row] for row in rows], self.encoder.tokenizer.pad_token_id)

    def _encode(self, answers: Sequence[Answer]) -> list[TokenGroup]:
        groups = (Group(a.prompt, (a.response,), source=f"answer {i}") for i, a in enumerate(answers))
        encoded = [tokens for _, tokens in self.encoder.encode(groups)]
        cut = self._counts.prompts_cut + self._counts.responses_cut
        if cut and not self._warned_of_cuts:
            self._warned_of_cuts = True
            log.warning("Reward model %r: %s. max_length decides.", self.name, self._counts)
        return [
            tokens if answer.finished else self._without_end(tokens)
            for tokens, answer in zip(encoded, answers, strict=True)
        ]

    def _without_end(self, tokens: TokenGroup) -> TokenGroup:
        response = list(tokens.responses[0])
        if len(response) > 1 and response[-1] in self.encoder.special:
            response = response[:-1]
        return tokens._replace(responses=[response])
