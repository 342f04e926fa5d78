"""Language models that compare and rate answers: AI feedback (RLAIF, Lee et al. 2023, 2309.00267)."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from lit_align.errors import UserError
from lit_align.feedback.judge import Judge
from lit_align.feedback.source import Answer, RewardSource, Scores
from lit_align.feedback.templates import (
    COMPARISON,
    CRITIQUE,
    HOW_GOOD,
    RATING,
    WHICH_IS_BETTER,
    check_fields,
    check_named,
    prompt_as_text,
)
from lit_align.feedback.text_model import Reading, TextModel
from lit_align.groups import Message

log = logging.getLogger(__name__)

FLOAT32_BELOW_ONE = 2**-24
"""Distance of neighbouring float32 numbers just below 1."""


class Judgements(NamedTuple):
    """What a judge said of P pairs of answers.

    Args:
        by_order: See `Judge.by_order`, `(P, 2)`.
        critiques: For each pair the critique when its first answer was shown first and when it was shown second, in which the
            responses go by their labels; empty where none were asked for.
    """

    by_order: Tensor
    critiques: list[tuple[str, str]]


class LLMJudge(Judge):
    """Shows a language model a prompt and two responses, and asks which is better.

    The verdict is the softmax over the log-probabilities of the two labels, averaged over both orders, because models favour
    the first or the second place: so exchanging the answers exchanges the verdict (Lee et al. 2023, 2309.00267).

    Args:
        model: `LocalModel`, or `Endpoint` for a server.
        template: The comparison, with the fields {prompt}, {first} and {second}. A brace that is text is written twice.
        question: What is asked behind it.
        labels: What the model answers for the response in the first place and for the one in the second. Template or question
            name them.
        critique_tokens: If above 0, the model first writes what is good and bad about the responses, in so many tokens at most,
            and is asked the question after that.
        on_unreadable: `raise` stops where the model says neither label, `tie` counts that as a tie. Models behind a server may
            decline to compare.
    """

    def __init__(
        self,
        model: TextModel,
        template: str = COMPARISON,
        question: str = WHICH_IS_BETTER,
        labels: tuple[str, str] = ("A", "B"),
        critique_tokens: int = 0,
        on_unreadable: Literal["raise", "tie"] = "raise",
    ) -> None:
        check_fields("LLMJudge", "template", template, ("prompt", "first", "second"))
        check_named("LLMJudge", labels, f"{template} {question}")
        if critique_tokens < 0:
            raise UserError(f"LLMJudge: critique_tokens must be 0, for no critique, or more, got {critique_tokens}.")
        model.check_labels(labels)
        self.model = model
        self.template = template
        self.question = question
        self.labels = labels
        self.critique_tokens = critique_tokens
        self.on_unreadable = on_unreadable

    def __call__(self, first: Sequence[Answer], second: Sequence[Answer]) -> Tensor:
        """The mean over both orders: p(a, b) + p(b, a) is 1 to the last bit.

        Raises:
            UserError: See `judgements`.
        """
        shown_first, _ = self._ask(first, second)
        lead = (shown_first[:, 0] - shown_first[:, 1]) / 2
        # So that 0.5 + lead and 0.5 - lead are both float32 numbers.
        lead = (lead / FLOAT32_BELOW_ONE).round() * FLOAT32_BELOW_ONE
        return (0.5 + lead).float()

    def by_order(self, first: Sequence[Answer], second: Sequence[Answer]) -> Tensor:
        """See `Judge.by_order`.

        Raises:
            UserError: See `judgements`.
        """
        return self.judgements(first, second).by_order

    def judgements(self, first: Sequence[Answer], second: Sequence[Answer]) -> Judgements:
        """The verdicts in both orders, and the critiques they came after.

        Args:
            first: P answers; P may be 0.
            second: Other answers to the same P prompts.

        Raises:
            UserError: A question cannot be asked, or an answer to it cannot be read.
        """
        shown_first, critiques = self._ask(first, second)
        by_order = torch.stack([shown_first[:, 0], 1 - shown_first[:, 1]], dim=1).float()
        pairs = list(zip(critiques[: len(first)], critiques[len(first) :], strict=True))
        return Judgements(by_order, pairs)

    def to(self, device: torch.device | str) -> None:
        """Moves the model, if it is in this process."""
        self.model.to(device)

    def _ask(self, first: Sequence[Answer], second: Sequence[Answer]) -> tuple[Tensor, list[str]]:
        """Probability that the response shown first is better, in the order given and the other way round.

        Returns:
            Float64, `(P, 2)`; and the critiques, those in the order given before the others, or none.
        """
        pairs = [*zip(first, second, strict=True), *zip(second, first, strict=True)]
        texts = [
            self.template.format(prompt=prompt_as_text(one.prompt), first=one.response, second=other.response)
            for one, other in pairs
        ]
        critiques: list[str] = []
        if self.critique_tokens:
            requests = [_asked(f"{text}\n\n{CRITIQUE}") for text in texts]
            critiques = self.model.complete(requests, self.critique_tokens)
            questions = [
                [*request, Message(role="assistant", content=critique), *_asked(self.question)]
                for request, critique in zip(requests, critiques, strict=True)
            ]
        else:
            questions = [_asked(f"{text}\n\n{self.question}") for text in texts]
        reading = self.model.label_logps(questions, self.labels)
        chances = _chances("LLMJudge", reading, self.labels, self.on_unreadable)
        return chances[:, 0].view(2, len(first)).T, critiques


class LLMScore(RewardSource):
    """Asks a language model to rate a response: the mean of the ratings, each weighted with its probability.

    As direct RLAIF uses it (Lee et al. 2023, 2309.00267), there with ratings from 1 to 10. One question an answer, where a
    comparison takes two a pair.

    Args:
        model: `LocalModel`, or `Endpoint` for a server.
        template: What is shown, with the fields {prompt} and {response}. A brace that is text is written twice.
        question: What is asked behind it. The fields {lowest} and {highest} are those of the ratings.
        ratings: The numbers that the model may answer, from the lowest to the highest; the reward lies between those two.
        on_unreadable: `raise` stops where the model says none of them, `middle` counts that as the mean of all ratings. Models
            behind a server may decline to rate.
    """

    def __init__(
        self,
        model: TextModel,
        template: str = RATING,
        question: str = HOW_GOOD,
        ratings: Sequence[int] = tuple(range(1, 11)),
        on_unreadable: Literal["raise", "middle"] = "raise",
    ) -> None:
        check_fields("LLMScore", "template", template, ("prompt", "response"))
        check_fields("LLMScore", "question", question, ("lowest", "highest"), all_needed=False)
        if len(ratings) < 2 or sorted({*ratings}) != list(ratings):
            raise UserError(f"LLMScore: ratings must be two or more numbers in rising order, got {list(ratings)}.")
        self.labels = [str(rating) for rating in ratings]
        self.question = question.format(lowest=ratings[0], highest=ratings[-1])
        check_named("LLMScore", [self.labels[0], self.labels[-1]], f"{template} {self.question}")
        model.check_labels(self.labels)
        self.model = model
        self.template = template
        self.ratings = tuple(ratings)
        self.on_unreadable = on_unreadable

    def __call__(self, answers: Sequence[Answer]) -> Scores:
        """The expected ratings.

        Raises:
            UserError: A question cannot be asked, or an answer to it cannot be read.
        """
        texts = [self.template.format(prompt=prompt_as_text(a.prompt), response=a.response) for a in answers]
        reading = self.model.label_logps([_asked(f"{text}\n\n{self.question}") for text in texts], self.labels)
        chances = _chances("LLMScore", reading, self.labels, self.on_unreadable)
        return Scores((chances @ torch.tensor(self.ratings, dtype=torch.float64)).float(), {})

    def to(self, device: torch.device | str) -> None:
        """Moves the model, if it is in this process."""
        self.model.to(device)


def _asked(text: str) -> list[Message]:
    return [Message(role="user", content=text)]


def _chances(owner: str, reading: Reading, labels: Sequence[str], on_unreadable: str) -> Tensor:
    """Probability of each label among the labels, float64, `(Q, L)`; all alike where none was made out.

    Raises:
        UserError: None was made out of an answer, and that is an error.
    """
    logps = reading.logps.double()
    unread = logps.isinf().all(dim=1)
    if unread.any():
        if on_unreadable == "raise":
            said = reading.said[int(unread.nonzero()[0])]
            names = labels if len(labels) < 3 else (labels[0], "...", labels[-1])
            raise UserError(
                f"{owner}: asked for one of {', '.join(names)}, the model said {said[:200]!r}. Word the question so that it "
                "answers with a label and nothing else, or set on_unreadable to go on without a verdict where there is none."
            )
        log.warning("%s: %d of %d answers named no label.", owner, int(unread.sum()), len(unread))
    return logps.masked_fill(unread[:, None], 0.0).softmax(1)
