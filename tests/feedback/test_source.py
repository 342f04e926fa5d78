from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch

from lit_align.data.mini_instruct import PROMPTS
from lit_align.errors import UserError
from lit_align.feedback import (
    Answer,
    LengthReward,
    MiniInstructGold,
    MissingEOSPenalty,
    RewardSource,
    Scores,
    WeightedSum,
    decoded_answers,
)
from lit_align.feedback.source import checked
from lit_align.groups import Text
from lit_align.models import ModelConfig, load_tokenizer
from lit_align.rollout import Response


def answer(response: str = "yes", prompt: Text = "is it?", finished: bool = True, n_tokens: int = 2) -> Answer:
    """An answer of which only some things matter."""
    return Answer(prompt, response, prompt_ids=[5, 6], response_ids=[7] * n_tokens, finished=finished)


class Ones(RewardSource):
    def __call__(self, answers: Sequence[Answer]) -> Scores:
        return Scores(torch.ones(len(answers)), {})


def test_a_source_of_ones_own_needs_one_method() -> None:
    source = Ones()
    source.to("cpu")
    assert source.state_dict() == {}
    source.load_state_dict({})
    assert source.score_rollout([answer(), answer()]).total.tolist() == [1.0, 1.0]


def test_a_state_without_a_taker_is_refused() -> None:
    with pytest.raises(UserError, match="LengthReward, which has none"):
        LengthReward(start=1, limit=2).load_state_dict({"number": 3})


def test_decoded_answers_are_flat_and_without_special_tokens() -> None:
    tokenizer = load_tokenizer(ModelConfig(path="mini_instruct", init="random"))
    ids = {word: tokenizer.convert_tokens_to_ids(word) for word in ("cats", "are", "lovely", "um", "<eos>")}
    prompts = ["tell me about cats", [{"role": "user", "content": "and dogs?"}]]
    prompt_ids = [[9, 8], [7]]
    responses = [
        [Response([ids["cats"], ids["are"], ids["lovely"], ids["<eos>"]], "eos"), Response([ids["<eos>"]], "eos")],
        [Response([ids["um"], ids["um"]], "length")],
    ]
    assert decoded_answers(tokenizer, prompts, prompt_ids, responses) == [
        Answer(prompts[0], "cats are lovely", [9, 8], responses[0][0].ids, True),
        Answer(prompts[0], "", [9, 8], responses[0][1].ids, True),
        Answer(prompts[1], "um um", [7], responses[1][0].ids, False),
    ]


def test_no_prompts_give_no_answers() -> None:
    tokenizer = load_tokenizer(ModelConfig(path="mini_instruct", init="random"))
    assert decoded_answers(tokenizer, [], [], []) == []


def test_checked_names_the_first_answer_without_a_number() -> None:
    answers = [answer("fine"), answer("odd", prompt=[{"role": "user", "content": "why?"}]), answer("odder")]
    with pytest.raises(UserError, match=r"The judge gave nan for the answer 'odd' to 'why\?'"):
        checked(torch.tensor([1.0, float("nan"), float("inf")]), answers, "The judge")
    with pytest.raises(UserError, match=r"shape \(2,\) for 3 answers"):
        checked(torch.ones(2), answers, "The judge")


def test_checked_gives_float32_without_a_graph() -> None:
    values = torch.tensor([0.1], dtype=torch.float64, requires_grad=True)
    result = checked(values, [answer()], "It")
    assert result.dtype == torch.float32
    assert not result.requires_grad


@pytest.mark.parametrize(
    "source",
    [LengthReward(start=0, limit=300), MissingEOSPenalty(1.0), MiniInstructGold()],
    ids=lambda s: type(s).__name__,
)
def test_scores_are_float32_whatever_the_trainer_makes_the_default(source: RewardSource) -> None:
    answers = [answer("cats are lovely", PROMPTS[0], finished=False, n_tokens=257)]
    expected = source(answers).total
    torch.set_default_dtype(torch.bfloat16)  # as Lightning does around a step under `bf16-true`
    try:
        found = [source(answers).total, WeightedSum({"it": source}, {"it": 1.0})(answers).total]
    finally:
        torch.set_default_dtype(torch.float32)
    for total in found:
        assert total.dtype == torch.float32
        assert torch.equal(total, expected)
