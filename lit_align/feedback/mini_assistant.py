"""The gold score of `mini_assistant` as a reward."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from lit_align.data.mini_assistant import PARTS, gold_parts
from lit_align.feedback.source import Answer, RewardSource, Scores


class MiniAssistantGold(RewardSource):
    """The gold score of `mini_assistant`, its parts as components: `topic`, `coverage`, `truth`, `toxicity` and others."""

    def __call__(self, answers: Sequence[Answer]) -> Scores:
        """Gold scores.

        Raises:
            UserError: A prompt is none of the task's.
        """
        parts = [gold_parts(str(answer.prompt), answer.response) for answer in answers]
        components = {name: torch.tensor([of[name] for of in parts], dtype=torch.float32) for name in PARTS}
        return Scores(torch.stack(list(components.values())).sum(0), components)
