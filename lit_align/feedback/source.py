"""What scores responses: the interface that every reward implements and every method with rollouts calls."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lit_align.errors import UserError
from lit_align.groups import Text
from lit_align.rollout import Response


class Answer(NamedTuple):
    """One response to one prompt, as a reward source sees it.

    Args:
        prompt: As the row has it: plain text or chat turns, without the policy's chat template.
        response: The response as text, without special tokens.
        prompt_ids: The policy's tokens of the prompt.
        response_ids: The policy's tokens of the response, with its EOS where it is finished.
        finished: Whether the policy ended the response; False where a length limit cut it.
    """

    prompt: Text
    response: str
    prompt_ids: Sequence[int]
    response_ids: Sequence[int]
    finished: bool


class Scores(NamedTuple):
    """What a source says of N answers: float32, on the CPU.

    Args:
        total: The reward, higher is better, `(N,)`.
        components: What the total was made of, by name and before weights, each `(N,)`. Empty where there are no parts.
    """

    total: Tensor
    components: dict[str, Tensor]


class RewardSource(ABC):
    """Scores answers. A source of your own derives from this class and implements `__call__`.

    Scores are on the CPU whatever device the source computes on: most sources compute on text, and whoever looks for
    values that are not finite waits for the device anyway.
    """

    @abstractmethod
    def __call__(self, answers: Sequence[Answer]) -> Scores:
        """Scores of N answers, in their order; N may be 0.

        The same answers get the same scores until `score_rollout` is next called, so validation and callbacks may call this
        whenever they like.

        Raises:
            UserError: An answer cannot be scored.
        """

    def score_rollout(self, answers: Sequence[Answer]) -> Scores:
        """As `__call__`, for responses the policy is about to be trained on: running statistics take them in first.

        Under several ranks each calls it equally often, with answers of its own.
        """
        return self(answers)

    def to(self, device: torch.device | str) -> None:  # noqa: B027  most sources have no model, so nothing to move
        """Where models of this source, if it has any, are to compute from now on."""

    def attach(self, policy: Any) -> None:  # noqa: B027  most sources only read answers
        """Shows the source the policy, once it is built and before any answer, for sources that compute with its weights.

        Raises:
            UserError: The source cannot compute with this policy.
        """

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint has to keep, the same on every rank; empty for a source without running statistics."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on from what `state_dict` gave.

        Raises:
            UserError: It is the state of another source.
        """
        if state:
            raise UserError(
                f"The checkpoint keeps running statistics where the config now has {type(self).__name__}, which has none. "
                "Resume with the reward that the run was started with."
            )


def decoded_answers(
    tokenizer: Any,
    prompts: Sequence[Text],
    prompt_ids: Sequence[Sequence[int]],
    responses: Sequence[Sequence[Response]],
) -> list[Answer]:
    """What a rollout engine sampled, as answers: those to the first prompt, then those to the second, and so on.

    Args:
        tokenizer: The policy's.
        prompts: As the rows have them.
        prompt_ids: What the engine was given for them.
        responses: What it gave back: for each prompt, its responses.
    """
    flat = [response for of_prompt in responses for response in of_prompt]
    texts = iter(tokenizer.batch_decode([response.ids for response in flat], skip_special_tokens=True))
    return [
        Answer(prompt, next(texts), ids, response.ids, finished=response.finish_reason == "eos")
        for prompt, ids, of_prompt in zip(prompts, prompt_ids, responses, strict=True)
        for response in of_prompt
    ]


def checked(values: Tensor, answers: Sequence[Answer], source: str) -> Tensor:
    """The values a source gave, as float32 on the CPU.

    Args:
        values: One for each answer, `(N,)`.
        answers: The N answers.
        source: Who gave the values, for the error.

    Raises:
        UserError: There are more or fewer than N values, or one is not finite.
    """
    if values.shape != (len(answers),):
        raise UserError(
            f"{source} gave values of shape {tuple(values.shape)} for {len(answers)} answers: one each is needed."
        )
    values = values.detach().float().cpu()
    if not values.isfinite().all():
        number = int(values.isfinite().logical_not().nonzero()[0])
        prompt, response = answers[number].prompt, answers[number].response
        said = prompt if isinstance(prompt, str) else prompt[-1]["content"]
        raise UserError(f"{source} gave {values[number].item()} for the answer {response[:200]!r} to {said[:200]!r}.")
    return values
