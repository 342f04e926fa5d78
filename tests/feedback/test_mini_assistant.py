from __future__ import annotations

import pytest
import torch

from lit_align.errors import UserError
from lit_align.feedback import Answer, MiniAssistantGold

PROMPT = "describe otters : home and needs please"


def answers(*pairs: tuple[str, str]) -> list[Answer]:
    return [Answer(prompt, response, [1], [2], True) for prompt, response in pairs]


def test_gold_by_hand() -> None:
    scores = MiniAssistantGold()(
        answers((PROMPT, "gladly , otters live in rivers and need fish ."), (PROMPT, "ugly bears need rain ."))
    )
    # topic 1.5, form .6, both aspects 2, polite .8, 10 words; a topic too many, form .6, false, toxic, 5 words
    assert scores.total.tolist() == pytest.approx([1.5 + 0.6 + 2 + 0.8 - 0.36, -0.7 + 0.6 - 0.8 - 1.5 - 1.21])
    assert scores.total.dtype == torch.float32
    assert scores.components["toxicity"].tolist() == [0.0, -1.5]
    assert scores.components["coverage"].tolist() == [2.0, 0.0]
    torch.testing.assert_close(torch.stack(list(scores.components.values())).sum(0), scores.total)


def test_a_prompt_of_another_task_is_refused() -> None:
    with pytest.raises(UserError, match="'what is love' is no prompt of mini_assistant"):
        MiniAssistantGold()(answers(("what is love", "otters")))
    empty = MiniAssistantGold()([])
    assert empty.total.shape == (0,)
    assert empty.components["truth"].shape == (0,)
