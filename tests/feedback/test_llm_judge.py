from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from lit_align.errors import UserError
from lit_align.feedback import Answer, LLMJudge, LLMScore, LocalModel, Reading, TextModel
from lit_align.feedback.templates import check_fields, prompt_as_text
from lit_align.groups import Message, Text
from lit_align.models import ModelConfig

TokenLogps = Callable[[str, str, str], list[float]]
CHAT: Text = [Message(role="user", content="who?")]
SHORT: Any = {"template": "{prompt} A: {first} B: {second}", "question": "A or B?"}


def answer(response: str, prompt: Text = "what is it?") -> Answer:
    return Answer(prompt, response, prompt_ids=[9], response_ids=[8, 7], finished=True)


def answers(*responses: str) -> list[Answer]:
    return [answer(response) for response in responses]


class Scripted(TextModel):
    """Says what it was told to, and remembers what it was asked."""

    def __init__(self, logps: Sequence[Sequence[float]] = (), said: Sequence[str] = (), critiques: str = "") -> None:
        self.logps = logps
        self.said = said
        self.critiques = critiques
        self.asked: list[list[Message]] = []
        self.max_tokens = 0

    def label_logps(self, questions: Sequence[list[Message]], labels: Sequence[str]) -> Reading:
        self.asked += questions
        self.labels = list(labels)
        return Reading(torch.tensor(self.logps).view(-1, len(labels)), list(self.said) or [""] * len(questions))

    def complete(self, questions: Sequence[list[Message]], max_tokens: int) -> list[str]:
        self.max_tokens = max_tokens
        return [f"{self.critiques} {number}" for number, _ in enumerate(questions)]


@pytest.fixture
def local(language_models: Path) -> LocalModel:
    return LocalModel(ModelConfig(str(language_models / "chat")), batch_size=3)


def test_the_verdict_is_the_mean_over_both_orders() -> None:
    # Shown first, the first answer gets log-odds 2; shown second, the other one gets log-odds 1.
    judge = LLMJudge(Scripted([[-1.0, -3.0], [-2.0, -3.0]]))
    shown_first, shown_second = 1 / (1 + math.exp(-2)), 1 - 1 / (1 + math.exp(-1))
    first, second = answers("a cat"), answers("a dog")
    torch.testing.assert_close(judge.by_order(first, second), torch.tensor([[shown_first, shown_second]]))
    torch.testing.assert_close(judge(first, second), torch.tensor([(shown_first + shown_second) / 2]))


def test_both_answers_are_shown_in_both_places() -> None:
    model = Scripted([[0.0, 0.0]] * 4)
    LLMJudge(model, **SHORT)([answer("a cat"), answer("me", CHAT)], [answer("a dog"), answer("{you}", CHAT)])
    assert [question[0]["content"] for question in model.asked] == [
        "what is it? A: a cat B: a dog\n\nA or B?",
        "who? A: me B: {you}\n\nA or B?",
        "what is it? A: a dog B: a cat\n\nA or B?",
        "who? A: {you} B: me\n\nA or B?",
    ]
    assert all(len(question) == 1 and question[0]["role"] == "user" for question in model.asked)


def test_a_local_model_says_what_a_forward_pass_of_transformers_says(
    local: LocalModel, token_logps_of: TokenLogps
) -> None:
    judge = LLMJudge(local, **SHORT)
    expected = []
    for one, other in (("a cat", "a dog"), ("a dog", "a cat")):
        before = f"<|u|>what is it? A: {one} B: {other}\n\nA or B?<|end|><|a|>"
        log_odds = token_logps_of("chat", before, "A")[0] - token_logps_of("chat", before, "B")[0]
        expected.append(1 / (1 + math.exp(-log_odds)))
    by_order = judge.by_order(answers("a cat"), answers("a dog"))
    torch.testing.assert_close(by_order, torch.tensor([[expected[0], 1 - expected[1]]]), atol=1e-5, rtol=0)
    assert abs(expected[0] - expected[1]) > 1e-3


def test_exchanging_the_answers_exchanges_the_verdict_to_the_last_bit(local: LocalModel) -> None:
    judge = LLMJudge(local)
    first, second = answers("a cat", "dog", "it is so", "x", "same"), answers("a dog", "a horse", "no", "y", "same")
    there, back = judge(first, second), judge(second, first)
    assert torch.equal(there + back, torch.ones(5))
    assert there[4] == 0.5
    assert len({*there.tolist()}) == 5
    torch.testing.assert_close(judge.by_order(first, second), 1 - judge.by_order(second, first).flip(1))


def test_a_batch_of_pairs_is_each_pair_alone(local: LocalModel) -> None:
    judge = LLMJudge(local)
    first, second = answers("a", "a much longer answer", "b"), answers("so it is", "c", "d, or e")
    alone = torch.cat([judge([one], [other]) for one, other in zip(first, second, strict=True)])
    torch.testing.assert_close(judge(first, second), alone, atol=1e-5, rtol=0)


def test_certainty_is_no_trouble() -> None:
    judge = LLMJudge(Scripted([[0.0, -math.inf], [-math.inf, -0.1]]))
    assert judge(answers("a"), answers("b")).tolist() == [1.0]


def test_a_critique_comes_before_the_question() -> None:
    model = Scripted([[0.0, 0.0]] * 2, critiques="critique")
    judgements = LLMJudge(model, **SHORT, critique_tokens=40).judgements(answers("a cat"), answers("a dog"))
    assert judgements.critiques == [("critique 0", "critique 1")]
    assert model.max_tokens == 40
    request, critique, question = model.asked[1]
    assert request["content"].startswith("what is it? A: a dog B: a cat\n\nSay in a few sentences")
    assert critique == {"role": "assistant", "content": "critique 1"}
    assert question == {"role": "user", "content": "A or B?"}


def test_a_local_model_judges_after_its_own_critique(local: LocalModel, token_logps_of: TokenLogps) -> None:
    judge = LLMJudge(local, **SHORT, critique_tokens=6)
    first, second = answers("a cat", "x"), answers("a dog", "y")
    judgements = judge.judgements(first, second)
    (critique, _), _ = judgements.critiques
    assert critique
    request = (
        "<|u|>what is it? A: a cat B: a dog\n\nSay in a few sentences what each response does well and what it does "
    )
    before = f"{request}badly. Do not say yet which one is better.<|end|><|a|>{critique}<|end|><|u|>A or B?<|end|><|a|>"
    log_odds = token_logps_of("chat", before, "A")[0] - token_logps_of("chat", before, "B")[0]
    assert judgements.by_order[0, 0].item() == pytest.approx(1 / (1 + math.exp(-log_odds)), abs=1e-5)
    assert torch.equal(judge(first, second) + judge(second, first), torch.ones(2))


def test_no_critique_unless_asked_for() -> None:
    assert LLMJudge(Scripted([[0.0, 0.0]] * 2)).judgements(answers("a"), answers("b")).critiques == []


def test_no_answers_no_verdicts(local: LocalModel) -> None:
    judge = LLMJudge(local)
    assert judge([], []).shape == (0,)
    assert judge.by_order([], []).shape == (0, 2)
    assert LLMScore(local)([]).total.shape == (0,)


UNREAD = [[-1.0, -1.5], [-math.inf, -math.inf]]


def test_an_answer_that_names_no_label(caplog: pytest.LogCaptureFixture) -> None:
    model = Scripted(UNREAD, ["", "I would rather not."])
    with pytest.raises(UserError, match=r"asked for one of A, B, the model said 'I would rather not\.'"):
        LLMJudge(model)(answers("a"), answers("b"))
    verdict = LLMJudge(model, on_unreadable="tie").by_order(answers("a"), answers("b"))
    torch.testing.assert_close(verdict, torch.tensor([[1 / (1 + math.exp(-0.5)), 0.5]]))
    assert "1 of 2 answers named no label" in caplog.text


def test_the_score_is_the_expected_rating(local: LocalModel, token_logps_of: TokenLogps) -> None:
    score = LLMScore(local, template="{prompt} {response}", question="from {lowest} to {highest}?", ratings=[1, 3, 7])
    before = "<|u|>what is it? a cat\n\nfrom 1 to 7?<|end|><|a|>"
    weights = [math.exp(token_logps_of("chat", before, label)[0]) for label in "137"]
    expected = sum(weight * rating for weight, rating in zip(weights, (1, 3, 7), strict=True)) / sum(weights)
    scores = score(answers("a cat", "a dog", "it"))
    assert scores.total[0].item() == pytest.approx(expected, abs=1e-4)
    assert scores.total.shape == (3,)
    assert ((scores.total > 1) & (scores.total < 7)).all()


def test_ratings_are_one_to_ten() -> None:
    # Nine tenths on 10, one tenth on 5.
    logps = [-math.inf] * 10
    logps[9], logps[4] = math.log(0.9), math.log(0.1)
    model = Scripted([logps])
    assert LLMScore(model)(answers("a")).total.item() == pytest.approx(9.5)
    assert model.labels == [str(number) for number in range(1, 11)]
    assert "from 1 (worst) to 10 (best)" in model.asked[0][0]["content"]


def test_a_rating_that_cannot_be_read() -> None:
    model = Scripted([[-math.inf] * 10], ["no"])
    with pytest.raises(UserError, match=r"one of 1, \.\.\., 10, the model said 'no'"):
        LLMScore(model)(answers("a"))
    assert LLMScore(model, on_unreadable="middle")(answers("a")).total.item() == pytest.approx(5.5)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"template": "{prompt} {first}"}, r"template has no field \{second\}"),
        ({"template": "{prompt} {first} {second} {third}"}, r"the field \{third\}, which is not one of"),
        ({"template": "{prompt} {first} {second} {}"}, r"the field \{\}"),
        ({"template": "{prompt} {first} {second:>9}"}, r"the field \{second\}"),
        ({"template": "{prompt} {first} {second} {"}, "write a brace that is text twice"),
        ({"labels": ("A", "A")}, "two or more different texts"),
        ({"labels": (" A", "B")}, "without space around them"),
        ({"labels": ("yes", "B")}, "names 'yes'"),
        ({"critique_tokens": -1}, "critique_tokens must be 0"),
    ],
)
def test_what_a_judge_refuses(settings: Any, said: str) -> None:
    with pytest.raises(UserError, match=said):
        LLMJudge(Scripted(), **settings)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"ratings": [1]}, "two or more numbers in rising order"),
        ({"ratings": [2, 1]}, "two or more numbers in rising order"),
        ({"question": "How good, from 1 to 5?"}, "names '10'"),
        ({"question": "{worst}?"}, r"the field \{worst\}"),
        ({"template": "{response}"}, r"no field \{prompt\}"),
    ],
)
def test_what_a_score_refuses(settings: Any, said: str) -> None:
    with pytest.raises(UserError, match=said):
        LLMScore(Scripted(), **settings)


def test_braces_that_are_text() -> None:
    template = "{{{prompt}}} {first} {second} A B"
    check_fields("LLMJudge", "template", template, ("prompt", "first", "second"))
    model = Scripted([[0.0, 0.0]] * 2)
    LLMJudge(model, template)(answers("x"), answers("y"))
    assert model.asked[0][0]["content"].startswith("{what is it?} x y")


def test_a_prompt_of_several_turns_says_who_speaks() -> None:
    turns = [Message(role="system", content="be kind"), *CHAT, Message(role="assistant", content="me")]
    assert prompt_as_text(turns) == "System: be kind\n\nUser: who?\n\nAssistant: me"
    assert prompt_as_text(CHAT) == "who?"
