from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from lit_align.errors import UserError
from lit_align.feedback import LocalModel
from lit_align.feedback.local_model import LabelTokens
from lit_align.groups import Message
from lit_align.models import LoRAConfig, ModelConfig

TokenLogps = Callable[[str, str, str], list[float]]


def asked(*turns: str) -> list[Message]:
    roles = ("user", "assistant")
    return [Message(role=roles[number % 2], content=turn) for number, turn in enumerate(turns)]


@pytest.fixture
def chat(language_models: Path) -> LocalModel:
    return LocalModel(ModelConfig(str(language_models / "chat")), batch_size=2)


@pytest.fixture
def plain(language_models: Path) -> LocalModel:
    return LocalModel(ModelConfig(str(language_models / "plain")), batch_size=2)


def test_labels_of_a_chat_model_begin_its_answer(chat: LocalModel, token_logps_of: TokenLogps) -> None:
    questions = [asked("A or B?"), asked("this?", "well", "A or B, then?")]
    written_out = ["<|u|>A or B?<|end|><|a|>", "<|u|>this?<|end|><|a|>well<|end|><|u|>A or B, then?<|end|><|a|>"]
    expected = [[sum(token_logps_of("chat", text, label)) for label in "AB"] for text in written_out]
    reading = chat.label_logps(questions, ["A", "B"])
    torch.testing.assert_close(reading.logps, torch.tensor(expected), atol=1e-5, rtol=0)
    assert reading.said == ["", ""]


def test_labels_of_a_plain_model_follow_behind_a_space(plain: LocalModel, token_logps_of: TokenLogps) -> None:
    questions = [asked("A or B?"), asked("this?", "well", "A or B, then?")]
    written_out = ["A or B?", "this?\n\nwell\n\nA or B, then?"]
    expected = [[sum(token_logps_of("plain", text, f" {label}")) for label in "AB"] for text in written_out]
    logps = plain.label_logps(questions, ["A", "B"]).logps
    torch.testing.assert_close(logps, torch.tensor(expected), atol=1e-5, rtol=0)


def test_labels_of_several_tokens_are_summed(chat: LocalModel, token_logps_of: TokenLogps) -> None:
    labels = ["first", "second", "fine", "B"]
    expected = [sum(token_logps_of("chat", "<|u|>which?<|end|><|a|>", label)) for label in labels]
    logps = chat.label_logps([asked("which?")], labels).logps
    torch.testing.assert_close(logps, torch.tensor([expected]), atol=1e-5, rtol=0)


def test_a_label_that_begins_another_is_not_credited_with_it(chat: LocalModel, token_logps_of: TokenLogps) -> None:
    before = "<|u|>which?<|end|><|a|>"
    one, then_zero = token_logps_of("chat", before, "10")
    _, then_two = token_logps_of("chat", before, "12")
    _, _, then_five = token_logps_of("chat", before, "125")
    two = token_logps_of("chat", before, "2")[0]
    expected = [
        one + math.log(1 - math.exp(then_zero) - math.exp(then_two)),
        two,
        one + then_zero,
        one + then_two + math.log(1 - math.exp(then_five)),
        one + then_two + then_five,
    ]
    logps = chat.label_logps([asked("which?")], ["1", "2", "10", "12", "125"]).logps
    torch.testing.assert_close(logps, torch.tensor([expected]), atol=1e-5, rtol=0)


def test_rows_are_as_few_as_labels_allow() -> None:
    # Tokens 1 to 9 and (1, 0): all but one label are read off the row that serves the last one.
    every = torch.randn(3, 2, 12).log_softmax(-1)
    labels: list[tuple[int, ...]] = [*((digit,) for digit in range(1, 10)), (1, 0)]
    read = LabelTokens(labels, [(1,)]).read(every)
    torch.testing.assert_close(read[:, 1:9], every[:, 0, 2:10])
    torch.testing.assert_close(read[:, 9], every[:, 0, 1] + every[:, 1, 0])
    torch.testing.assert_close(read[:, [0, 9]].logsumexp(1), every[:, 0, 1])


@pytest.mark.parametrize("batch_size", [1, 3, 100])
def test_batches_and_padding_change_nothing(batch_size: int, language_models: Path, chat: LocalModel) -> None:
    questions = [asked("so" * n) for n in (5, 1, 9, 3, 7, 2)]
    one_at_a_time = torch.cat([chat.label_logps([question], ["A", "no"]).logps for question in questions])
    together = LocalModel(ModelConfig(str(language_models / "chat")), batch_size).label_logps(questions, ["A", "no"])
    torch.testing.assert_close(together.logps, one_at_a_time, atol=1e-5, rtol=0)


def test_the_order_of_the_questions_changes_no_bit(chat: LocalModel) -> None:
    questions = [asked(text) for text in ("abc", "abd", "a much longer one", "xyz", "b")]
    there = chat.label_logps(questions, ["A", "B"]).logps
    back = chat.label_logps(questions[::-1], ["A", "B"]).logps
    assert torch.equal(there, back.flip(0))


def test_answers_are_the_most_likely_tokens(chat: LocalModel, language_models: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(language_models / "chat").eval()
    tokenizer = chat._frozen.tokenizer
    expected = []
    for text in ("<|u|>who?<|end|><|a|>", "<|u|>what is it?<|end|><|a|>"):
        ids = tokenizer(text, add_special_tokens=False).input_ids
        start = len(ids)
        for _ in range(8):
            with torch.no_grad():
                ids.append(int(model(input_ids=torch.tensor([ids])).logits[0, -1].argmax()))
            if ids[-1] == tokenizer.eos_token_id:
                break
        expected.append(tokenizer.decode(ids[start:], skip_special_tokens=True))
    state = torch.get_rng_state()
    answers = chat.complete([asked("who?"), asked("what is it?")], max_tokens=8)
    assert torch.equal(torch.get_rng_state(), state)
    assert answers == expected
    assert len(answers[0]) > 3


def test_nothing_asked_nothing_said(chat: LocalModel) -> None:
    assert chat.label_logps([], ["A", "B"]).logps.shape == (0, 2)
    assert chat.complete([], 5) == []


def test_the_model_is_loaded_late_and_frozen(chat: LocalModel) -> None:
    chat.to("cpu")
    assert "model" not in vars(chat._frozen)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        in_autocast = chat.label_logps([asked("who?")], ["A", "B"]).logps
    assert torch.equal(chat.label_logps([asked("who?")], ["A", "B"]).logps, in_autocast)
    assert not chat._frozen.model.training
    assert not any(parameter.requires_grad for parameter in chat._frozen.model.parameters())


def test_what_is_refused(chat: LocalModel) -> None:
    with pytest.raises(UserError, match="batch_size must be at least 1"):
        LocalModel(ModelConfig("folder"), batch_size=0)
    with pytest.raises(UserError, match="lora would have no effect"):
        LocalModel(ModelConfig("folder", lora=LoRAConfig()))
    with pytest.raises(UserError, match="cannot tell the labels 'ä', 'ö' apart"):
        chat.label_logps([asked("who?")], ["ä", "ö"])
    with pytest.raises(UserError, match="1103 tokens and its answer up to 1, which exceeds its 1024 positions"):
        chat.label_logps([asked("a" * 1100), asked("who?")], ["A", "B"])
    with pytest.raises(UserError, match="1024 positions"):
        chat.complete([asked("who?")], max_tokens=2000)


def test_weights_that_are_no_numbers(chat: LocalModel) -> None:
    with torch.no_grad():
        chat._frozen.model.get_input_embeddings().weight.fill_(float("nan"))
    with pytest.raises(UserError, match="no number"):
        chat.label_logps([asked("who?")], ["A", "B"])
