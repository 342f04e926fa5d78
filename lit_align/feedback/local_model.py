"""A causal language model in this process, that judges are asked of."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from lit_align.data.collate import padded
from lit_align.data.prompts import encoded_prompts
from lit_align.errors import UserError
from lit_align.feedback.frozen import FrozenModel
from lit_align.feedback.text_model import Reading, TextModel, as_plain_text, with_progress
from lit_align.groups import Message, Text, TokenGroup
from lit_align.models import ModelConfig, Sampling, response_hidden
from lit_align.models.logprobs import head_logits
from lit_align.rollout import NativeEngine, RolloutConfig, stop_token_ids

UNCUT = 2**31
"""Tokens of a prompt that `encoded_prompts` leaves whole. A question without its beginning would be another question."""


class LabelTokens(NamedTuple):
    """L labels as tokens, and the rows of model input that predict every one of them.

    Args:
        labels: Token ids of each label.
        stems: What stands behind the question in each row: labels without their last token, each distinct one once and none
            that begins another. A single empty one where every label is one token.
    """

    labels: list[tuple[int, ...]]
    stems: list[tuple[int, ...]]

    def read(self, every: Tensor) -> Tensor:
        """Log-probability that the answer is each label, and does not go on to be a longer one, `(Q, L)`.

        Args:
            every: Log-probabilities of all tokens behind the question and behind each token of each stem, stem by stem,
                `(Q, W, V)`.
        """
        starts = [sum(len(stem) + 1 for stem in self.stems[:row]) for row in range(len(self.stems))]
        logps = []
        for label in self.labels:
            row = next(row for row, stem in enumerate(self.stems) if stem[: len(label) - 1] == label[:-1])
            places = range(starts[row], starts[row] + len(label))
            logps.append(every[:, list(places), list(label)].sum(1))
        whole = torch.stack(logps, dim=1)
        exact = whole.clone()
        for number in range(len(self.labels)):
            if longer := self._next_longer(number):
                # "1" with what "10" has of it taken away.
                share = (whole[:, longer].logsumexp(1) - whole[:, number]).clamp(max=0).exp()
                exact[:, number] += torch.log1p(-share)
        return exact

    def _next_longer(self, number: int) -> list[int]:
        """Labels that begin with this one, without those that begin with another of them."""
        longer = [i for i, label in enumerate(self.labels) if _begins(self.labels[number], label)]
        return [i for i in longer if not any(_begins(self.labels[other], self.labels[i]) for other in longer)]


class LocalModel(TextModel):
    """Any causal language model from a folder or the hub, asked in this process.

    A model with a chat template gets the question as a chat and the labels as the beginning of its answer. One without gets
    plain text and the labels behind a space. Labels of several tokens are scored by the sum of their log-probabilities. The
    model is loaded at the first question, and frozen. It computes in its own `dtype`, whatever the Trainer's precision.

    Args:
        model: The model, with its tokenizer.
        batch_size: Questions that the model reads at once.
    """

    def __init__(self, model: ModelConfig, batch_size: int = 8) -> None:
        if batch_size < 1:
            raise UserError(f"LocalModel: batch_size must be at least 1, got {batch_size}.")
        self.batch_size = batch_size
        self._frozen = FrozenModel("LocalModel", model)

    def to(self, device: torch.device | str) -> None:
        """Moves the model, now or when it is loaded."""
        self._frozen.to(device)

    @torch.no_grad()
    def label_logps(self, questions: Sequence[list[Message]], labels: Sequence[str]) -> Reading:
        """Log-probability of each label's tokens behind each question.

        Raises:
            UserError: The chat template refuses a question, one is longer than the model's positions, the tokenizer cannot tell
                the labels apart, or a log-probability is no number.
        """
        tokens = self._tokens(labels)
        ids = self._encoded(questions, room=max(map(len, tokens.labels)))
        model, device = self._frozen.model, self._frozen.device
        # The last token of a row predicts nothing that is asked for, so any will do.
        last = self._frozen.tokenizer.pad_token_id
        behind = [[*stem, last] for stem in tokens.stems]
        # Whatever the order of the questions, they meet the same others in a batch: rounding depends on those.
        order = sorted(range(len(ids)), key=lambda i: (-len(ids[i]), ids[i]))
        logps = torch.empty(len(ids), len(labels))
        starts = range(0, len(order), self.batch_size)
        with torch.autocast(device.type, enabled=False):
            for start in with_progress(starts, len(starts), "Batches of questions to the model"):
                rows = order[start : start + self.batch_size]
                batch = padded([TokenGroup(ids[row], behind) for row in rows], last).to(device)
                every = head_logits(model, response_hidden(model, batch)).float().log_softmax(-1)
                logps[rows] = tokens.read(every.view(len(rows), -1, every.shape[-1])).cpu()
        if logps.isnan().any():
            raise UserError(
                f"The model {self._frozen.config.path!r} gave a log-probability that is no number: its weights are damaged, or "
                f"its dtype, {self._frozen.config.dtype}, has too small a range. Try dtype: float32."
            )
        return Reading(logps, [""] * len(questions))

    def complete(self, questions: Sequence[list[Message]], max_tokens: int) -> list[str]:
        """Greedy answers, by the engine that rollouts use.

        Raises:
            UserError: The chat template refuses a question, or one and its answer are longer than the model's positions.
        """
        if not questions:
            return []
        ids = self._encoded(questions, room=max_tokens)
        model, tokenizer, device = self._frozen.model, self._frozen.tokenizer, self._frozen.device
        config = RolloutConfig(max_tokens, Sampling(top_k=1), self.batch_size)
        engine = NativeEngine(model, config, stop_token_ids(tokenizer, model))
        # Even a choice of one draws a number.
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            responses = [of_question[0].ids for of_question in engine.sample(ids, 1)]
        texts: list[str] = tokenizer.batch_decode(responses, skip_special_tokens=True)
        return texts

    def _encoded(self, questions: Sequence[list[Message]], room: int) -> list[list[int]]:
        """Token ids of the questions; the model has positions for each and for `room` tokens more."""
        texts: list[Text] = [q if self._knows_chats else as_plain_text(q) for q in questions]
        ids = encoded_prompts(self._frozen.tokenizer, texts, UNCUT)
        positions = getattr(self._frozen.model.config.get_text_config(decoder=True), "max_position_embeddings", None)
        longest = max(map(len, ids), default=0)
        if positions is not None and longest + room > positions:
            raise UserError(
                f"A question to the model {self._frozen.config.path!r} has {longest} tokens and its answer up to {room}, which "
                f"exceeds its {positions} positions. Shorten the template or the answers that are judged, or take a model "
                "with a longer context."
            )
        return ids

    def _tokens(self, labels: Sequence[str]) -> LabelTokens:
        tokenizer = self._frozen.tokenizer
        texts = [label if self._knows_chats else f" {label}" for label in labels]
        tokens = [tuple(ids) for ids in tokenizer(texts, add_special_tokens=False)["input_ids"]]
        known = all(of_label and tokenizer.unk_token_id not in of_label for of_label in tokens)
        if not known or len({*tokens}) < len(tokens):
            raise UserError(
                f"The tokenizer of {self._frozen.config.path!r} cannot tell the labels {', '.join(map(repr, labels))} apart: "
                f"their tokens are {tokens}. Choose labels that it knows."
            )
        stems = sorted({label[:-1] for label in tokens})
        return LabelTokens(tokens, [stem for stem in stems if not any(_begins(stem, other) for other in stems)])

    @property
    def _knows_chats(self) -> bool:
        return self._frozen.tokenizer.chat_template is not None


def _begins(shorter: tuple[int, ...], longer: tuple[int, ...]) -> bool:
    """Whether the longer one goes on where the shorter one ends."""
    return len(shorter) < len(longer) and longer[: len(shorter)] == shorter
