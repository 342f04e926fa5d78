"""Where prompt and response part, how a response ends, and what is cut."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast

from lit_align.data.counts import Counts
from lit_align.data.encoding import Encoder, Lengths
from lit_align.data.row_reader import RowError
from lit_align.errors import UserError
from lit_align.groups import Group, Message, Span, TokenGroup

EOS = 1
CHAT: list[Message] = [{"role": "user", "content": "hello"}]


def _encode(
    tokenizer: PreTrainedTokenizerFast,
    groups: Sequence[Group],
    lengths: Lengths = Lengths(),
    counts: Counts | None = None,
) -> list[TokenGroup]:
    return [tokens for _, tokens in Encoder(tokenizer, lengths, counts or Counts()).encode(groups)]


def test_plain_text_ends_with_eos(word_tokenizer: Callable[..., PreTrainedTokenizerFast]) -> None:
    groups = [Group("a b", ("c", "d e f"), scores=(1.0, 0.0), margin=0.5), Group("c", ("a <eos>",))]
    assert _encode(word_tokenizer(), groups) == [
        TokenGroup([4, 5], [[6, EOS], [7, 8, 9, EOS]], (1.0, 0.0), None, 0.5, 0),
        TokenGroup([6], [[4, EOS]], row=1),
    ]


def test_a_prompt_begins_with_bos_and_is_not_closed(word_tokenizer: Callable[..., PreTrainedTokenizerFast]) -> None:
    tokenizer = word_tokenizer(adds_bos=True)
    assert tokenizer("a")["input_ids"] == [2, 4, 1]
    assert _encode(tokenizer, [Group("a b", ("c",))]) == [TokenGroup([2, 4, 5], [[6, EOS]], row=0)]


def test_more_rows_than_are_tokenised_at_once(word_tokenizer: Callable[..., PreTrainedTokenizerFast]) -> None:
    letters = "abcdefghijklmnopqrstuvwxyz"
    groups = [Group(letters[i % 26], (letters[i % 7],)) for i in range(2500)]
    encoded = _encode(word_tokenizer(), groups)
    assert [(list(g.prompt), list(g.responses[0]), g.row) for g in encoded] == [
        ([4 + i % 26], [4 + i % 7, EOS], i) for i in range(2500)
    ]


def test_a_chat_is_split_where_the_policy_begins_to_write(chat_tokenizer: PreTrainedTokenizerFast) -> None:
    (group,) = _encode(chat_tokenizer, [Group(CHAT, ("hello there", "no"), scores=(1.0, 0.0))])
    prompt = chat_tokenizer.apply_chat_template(CHAT, add_generation_prompt=True, tokenize=True, return_dict=False)
    assert group.prompt == prompt
    assert chat_tokenizer.decode(group.prompt) == "<|im_start|>user\nhello<|im_end|>\n<|im_start|>assistant\n"
    assert [chat_tokenizer.decode(ids) for ids in group.responses] == ["hello there<|im_end|>", "no<|im_end|>"]
    for text, response in zip(("hello there", "no"), group.responses, strict=True):
        chat = [*CHAT, Message(role="assistant", content=text)]
        whole = chat_tokenizer.apply_chat_template(chat, tokenize=True, return_dict=False)
        newline = chat_tokenizer("\n")["input_ids"]
        assert [*group.prompt, *response, *newline] == whole


def test_a_token_that_straddles_the_boundary_is_refused(chat_tokenizer: PreTrainedTokenizerFast) -> None:
    assert len(chat_tokenizer("\n\n")["input_ids"]) == 1
    groups = [Group(CHAT, ("\nhello",), source="rows.jsonl, row 3"), Group(CHAT, ("hello",))]
    with pytest.raises(RowError, match="row 3: the chat template of 'chatml' does not extend the prompt"):
        _encode(chat_tokenizer, groups)
    counts = Counts(on_bad_row="skip")
    (kept,) = _encode(chat_tokenizer, groups, counts=counts)
    assert chat_tokenizer.decode(kept.responses[0]) == "hello<|im_end|>"
    assert kept.row == 0
    assert counts.bad == 1


def test_a_template_that_is_no_prefix_is_refused_where_it_parts(chat_tokenizer: PreTrainedTokenizerFast) -> None:
    chat_tokenizer.chat_template = (
        "{{ messages | length }}{% for message in messages %}<|im_start|>{{ message['content'] }}{% endfor %}"
    )
    with pytest.raises(
        RowError, match=r"At token 0 the prompt .* goes on '1<\|im_start\|>hel.*whole chat '2<\|im_start"
    ):
        _encode(chat_tokenizer, [Group(CHAT, ("no",))])


@pytest.mark.parametrize(("close", "end", "warned"), [("", "<|im_end|>", 0), ("<|eot|>\n", "<|eot|>", 1)])
def test_a_template_that_closes_without_eos(
    chat_tokenizer: PreTrainedTokenizerFast, caplog: pytest.LogCaptureFixture, close: str, end: str, warned: int
) -> None:
    chat_tokenizer.add_special_tokens({"additional_special_tokens": ["<|eot|>"]})
    assert chat_tokenizer.chat_template is not None
    chat_tokenizer.chat_template = chat_tokenizer.chat_template.replace("<|im_end|>\n", close)
    with caplog.at_level(logging.WARNING):
        groups = _encode(chat_tokenizer, [Group(CHAT, ("no",)), Group(CHAT, ("hello\n",))])
    assert chat_tokenizer.decode(groups[0].responses[0]) == f"no{end}"
    assert chat_tokenizer.decode(groups[1].responses[0]) == f"hello\n{end}"
    assert len(caplog.records) == warned
    if warned:
        assert "closes a turn with '<|eot|>' and not with the EOS token '<|im_end|>'" in caplog.text


def test_a_chat_needs_a_template_that_takes_it(
    chat_tokenizer: PreTrainedTokenizerFast, word_tokenizer: Callable[..., PreTrainedTokenizerFast]
) -> None:
    with pytest.raises(UserError, match="row 4 is a chat, and the tokenizer 'words' has no chat template"):
        _encode(word_tokenizer(), [Group(CHAT, ("a",), source="row 4")])
    chat_tokenizer.chat_template = "{{ raise_exception('no system turns, please') }}"
    with pytest.raises(RowError, match="row 4: the chat template of 'chatml' refuses the chat: no system turns"):
        _encode(chat_tokenizer, [Group(CHAT, ("a",), source="row 4")])


def test_a_tokenizer_without_eos_is_refused(word_tokenizer: Callable[..., PreTrainedTokenizerFast]) -> None:
    tokenizer = word_tokenizer()
    tokenizer.eos_token = None
    with pytest.raises(UserError, match="'words' has no EOS token"):
        Encoder(tokenizer, Lengths(), Counts())


@pytest.mark.parametrize(
    ("lengths", "prompt", "responses", "cut"),
    [
        # Six tokens of prompt, responses of two and of four with EOS.
        ({"max_length": 10}, [4, 5, 6, 7, 8, 9], [[14, EOS], [14, 15, 16, EOS]], (0, 0)),
        ({"max_length": 9}, [5, 6, 7, 8, 9], [[14, EOS], [14, 15, 16, EOS]], (1, 0)),
        ({"max_length": 6}, [7, 8, 9], [[14, EOS], [14, 15, 16]], (1, 1)),
        ({"max_length": 9, "max_prompt_length": 2}, [8, 9], [[14, EOS], [14, 15, 16, EOS]], (1, 0)),
        ({"max_length": 9, "max_prompt_length": 8}, [4, 5, 6, 7, 8, 9], [[14, EOS], [14, 15, 16]], (0, 1)),
        ({"max_length": 3, "max_prompt_length": 1}, [9], [[14, EOS], [14, 15]], (1, 1)),
    ],
)
def test_cutting(
    word_tokenizer: Callable[..., PreTrainedTokenizerFast],
    lengths: dict[str, Any],
    prompt: list[int],
    responses: list[list[int]],
    cut: tuple[int, int],
) -> None:
    group = Group("a b c d e f", ("k", "k l m"), source="row 4")
    counts = Counts()
    (tokens,) = _encode(word_tokenizer(), [group], Lengths(**lengths), counts)
    assert (tokens.prompt, tokens.responses) == (prompt, responses)
    assert (counts.prompts_cut, counts.responses_cut) == cut
    assert (counts.groups, counts.responses, counts.tokens) == (1, 2, len(prompt) + sum(map(len, responses)))
    dropped = Counts()
    left = _encode(word_tokenizer(), [group, Group("a", ("b",))], Lengths(**lengths, too_long="drop"), dropped)
    assert len(left) == (2 if cut == (0, 0) else 1)
    assert left[-1].row == len(left) - 1
    assert dropped.too_long == 2 - len(left)
    if cut != (0, 0):
        with pytest.raises(UserError, match=r"row 4: 6 tokens of prompt and up to 4 of response exceed max_length \d+"):
            _encode(word_tokenizer(), [group], Lengths(**lengths, too_long="raise"))


def test_a_cut_prompt_keeps_its_bos(word_tokenizer: Callable[..., PreTrainedTokenizerFast]) -> None:
    (tokens,) = _encode(word_tokenizer(adds_bos=True), [Group("a b c d", ("k",))], Lengths(8, 3))
    assert tokens.prompt == [2, 6, 7]


@pytest.mark.parametrize(
    ("arguments", "message"), [((1,), "leave room"), ((8, 8), "smaller than max_length"), ((8, 0), "1")]
)
def test_lengths_without_room_are_refused(arguments: tuple[int, ...], message: str) -> None:
    with pytest.raises(UserError, match=message):
        Lengths(*arguments)


def test_counts_in_words() -> None:
    counts = Counts(groups=1200, responses=2400, tokens=99, ties=2, too_long=3, prompts_cut=4, responses_cut=5)
    assert str(counts) == (
        "1,200 prompts with 2,400 responses, 99 tokens; 2 without a preference dropped; 3 dropped as too long; "
        "4 prompts cut on the left; 5 responses cut on the right"
    )


def test_weights_of_words_go_to_their_tokens(word_tokenizer: Callable[..., PreTrainedTokenizerFast]) -> None:
    # One token a letter; the closing EOS weighs what the last letter does.
    spans = (Span(0, 1, 0.5), Span(3, 5, 2.0))
    group = Group("a b", ("c d e", "f"), weights=(spans, ()))
    (tokens,) = _encode(word_tokenizer(adds_bos=True), [group])
    assert tokens.responses == [[6, 7, 8, EOS], [9, EOS]]
    assert tokens.weights == [[0.5, 1.0, 2.0, 2.0], [1.0, 1.0]]
    (cut,) = _encode(word_tokenizer(), [group], Lengths(5, 2))
    assert (cut.responses[0], cut.weights) == ([6, 7, 8], [[0.5, 1.0, 2.0], [1.0, 1.0]])


@pytest.mark.parametrize("text", ["hello there", "  hello there"])
@pytest.mark.parametrize("trim", [False, True])
def test_weights_find_their_words_in_a_chat(chat_tokenizer: PreTrainedTokenizerFast, text: str, trim: bool) -> None:
    if trim:
        assert chat_tokenizer.chat_template is not None
        chat_tokenizer.chat_template = chat_tokenizer.chat_template.replace("['content'] }}", "['content'] | trim }}")
    begin = text.index("there")
    (tokens,) = _encode(chat_tokenizer, [Group(CHAT, (text,), weights=((Span(begin, begin + 5, 0.0),),))])
    assert tokens.weights is not None
    for token, weight in zip(tokens.responses[0], tokens.weights[0], strict=True):
        letters = chat_tokenizer.decode([token])
        # "hello", and whatever of it became tokens of its own, weighs 1; EOS goes with the last word.
        assert weight == (0.0 if letters.strip() in ("there", "<|im_end|>") or "ther" in letters else 1.0), letters
    assert 0.0 in tokens.weights[0]
    assert 1.0 in tokens.weights[0]


def test_weights_need_the_text_they_speak_of(chat_tokenizer: PreTrainedTokenizerFast) -> None:
    assert chat_tokenizer.chat_template is not None
    chat_tokenizer.chat_template = chat_tokenizer.chat_template.replace("['content'] }}", "['content'] | upper }}")
    with pytest.raises(RowError, match="row 4: the chat template of 'chatml' changes the text of the response"):
        _encode(chat_tokenizer, [Group(CHAT, ("hello",), source="row 4", weights=((Span(0, 1, 2.0),),))])


def test_a_response_that_was_stopped_is_not_closed(
    chat_tokenizer: PreTrainedTokenizerFast, word_tokenizer: Callable[..., PreTrainedTokenizerFast]
) -> None:
    (plain,) = _encode(word_tokenizer(), [Group("a", ("b c",), labels=(False,), finished=False)])
    assert (plain.responses, plain.labels) == ([[5, 6]], (False,))
    (chat,) = _encode(chat_tokenizer, [Group(CHAT, ("hello the",), labels=(False,), finished=False)])
    assert chat_tokenizer.decode(chat.responses[0]) == "hello the"


def test_a_stop_that_would_be_cut_away_is_dropped(word_tokenizer: Callable[..., PreTrainedTokenizerFast]) -> None:
    counts = Counts()
    group = Group("a", ("b c d e",), labels=(False,), finished=False)
    assert _encode(word_tokenizer(), [group], Lengths(4, 2), counts) == []
    assert counts.too_long == 1
    (kept,) = _encode(word_tokenizer(), [group], Lengths(5, 2), counts)
    assert kept.responses == [[5, 6, 7, 8]]


def test_text_without_a_prompt_begins_behind_bos_or_eos(word_tokenizer: Callable[..., PreTrainedTokenizerFast]) -> None:
    text = Group("", ("a b",))
    assert _encode(word_tokenizer(), [text]) == [TokenGroup([EOS], [[4, 5, EOS]], row=0)]
    assert _encode(word_tokenizer(adds_bos=True), [text]) == [TokenGroup([2], [[4, 5, EOS]], row=0)]
