"""Thousands of broken rows: each is read as it should be, or refused with a sentence that names it."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mutations
import pytest
from transformers import PreTrainedTokenizerFast

from lit_align.data import (
    Encoder,
    GroupDataModule,
    LabelData,
    Lengths,
    PreferenceData,
    PromptData,
    RankingData,
    SFTData,
    padded,
    read_groups,
)
from lit_align.data.counts import Counts
from lit_align.errors import UserError
from lit_align.groups import Group, TokenGroup

CHAT = [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "there"}]
ROWS: tuple[dict[str, Any], ...] = (
    {"prompt": "hello", "chosen": "there", "rejected": "no", "margin": 0.5},
    {"prompt": "hello", "chosen": "there you", "rejected": "no", "chosen_weights": [[0, 5, 2.0]]},
    {"prompt": CHAT[:1], "chosen": CHAT[1:], "rejected": [{"role": "assistant", "content": "no"}]},
    {"chosen": CHAT, "rejected": [CHAT[0], {"role": "assistant", "content": "no"}]},
    {"chosen": "\n\nHuman: hello\n\nAssistant: there", "rejected": "\n\nHuman: hello\n\nAssistant: no"},
    {"conversations": [{"from": "human", "value": "hello"}], "chosen": {"from": "gpt", "value": "a"}, "rejected": "b"},
    {"prompt": "hello", "responses": ["a", "b", "c"], "scores": [1, 0.5, -2]},
    {"prompt": CHAT[:1], "responses": ["a", "b"], "ranking": [2, 1]},
    {"instruction": "hello", "completions": [{"response": "a", "fine-grained_score": 3.0}] * 2},
    {"prompt": "hello", "response": "there you are", "edited": "there we are"},
    {"prompt": "hello", "response": "there", "label": True},
    {"prompt": "hello", "response": "there"},
    {"prompt": "hello", "prefix": "there you are", "stop": 5},
    {"prompt": "hello", "completion": "there", "weights": [[0, 2, 0.5]]},
    {"messages": CHAT, "label": False},
    {"conversations": [{"from": "human", "value": "hello"}, {"from": "gpt", "value": "there"}]},
    {"instruction": "hello", "input": "you", "output": "there"},
    {"conversations": CHAT, "system": "assistant"},
    {"instruction": "hello", "history": [["hello", "there"]], "output": "you", "system": "assistant"},
    {"text": "hello there"},
)
NAMES = tuple(sorted({name for row in ROWS for name in row} | {"role", "content", "Prompt", "", "from"}))


def fuzzed(number: int, seed: int) -> list[Any]:
    draw = random.Random(seed)
    return [mutations.mutated(draw.choice(ROWS), draw, NAMES) for _ in range(number)]


def refuse_what_is_wrong(group: Group, tokens: TokenGroup, vocabulary: int) -> None:
    """What everything behind the encoder relies on."""
    assert tokens.prompt
    assert tokens.responses
    assert all(tokens.responses)
    assert len(tokens.prompt) + max(map(len, tokens.responses)) <= 64
    assert all(0 <= token < vocabulary for ids in (tokens.prompt, *tokens.responses) for token in ids)
    for values in (tokens.scores, tokens.labels):
        assert values is None or (len(values) == len(tokens.responses) and all(map(math.isfinite, values)))
    assert math.isfinite(tokens.margin)
    if tokens.weights is not None:
        assert [len(of_response) for of_response in tokens.weights] == [len(ids) for ids in tokens.responses]
        assert all(math.isfinite(weight) for of_response in tokens.weights for weight in of_response)
    assert group.source


def read_and_encode(file: Path, tokenizer: PreTrainedTokenizerFast) -> tuple[int, Counts]:
    """Every row of a file, with a batch of those that are fine; how many came out, and what became of the others."""
    counts = Counts("skip")
    out = 0
    for group, tokens in Encoder(tokenizer, Lengths(64), counts).encode(read_groups(str(file), counts)):
        refuse_what_is_wrong(group, tokens, len(tokenizer))
        batch = padded([tokens], pad_id=0)
        assert int(batch.model_inputs["attention_mask"].sum()) == sum(
            len(tokens.prompt) + len(ids) for ids in tokens.responses
        )
        out += 1
    return out, counts


@pytest.mark.parametrize(
    ("number", "seed"), [(1000, 0), *(pytest.param(1000, seed, marks=pytest.mark.slow) for seed in range(1, 11))]
)
def test_a_row_is_read_or_refused(
    number: int, seed: int, chat_tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    file = tmp_path / "rows.jsonl"
    rows = fuzzed(number, seed)
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    out, counts = read_and_encode(file, chat_tokenizer)
    # None is lost without a word.
    assert out + counts.bad == number
    assert 0.05 * number < counts.bad < 0.95 * number
    assert all("rows.jsonl, row" in reason for reason in counts.reasons)


@pytest.mark.parametrize("kind", [SFTData, PreferenceData, RankingData, LabelData, PromptData])
def test_every_kind_of_data_takes_what_it_can(
    kind: type[GroupDataModule],
    chat_tokenizer: PreTrainedTokenizerFast,
    write_jsonl: Callable[..., str],
    tmp_path: Path,
) -> None:
    chat_tokenizer.save_pretrained(tmp_path / "tokenizer")
    rows = fuzzed(400, 99)
    name = write_jsonl([json.dumps(row) for row in (*ROWS, *rows)])  # which escapes halves of characters
    for streaming in (False, True):
        options: dict[str, Any] = {} if kind is PromptData else {"max_length": 64, "streaming": streaming}
        data = kind(
            name,
            tokenizer=str(tmp_path / "tokenizer"),
            batch_size=8,
            max_prompt_length=32,
            on_bad_row="skip",
            **options,
        )
        data.setup("fit")
        for batch in data.train_dataloader():
            assert batch is not None


BYTES = b'\x00\x7f\x80\xff\xef\xbb\xbf{}[]",:\\\n\r\t0e-'


def damaged(content: bytes, draw: random.Random) -> bytes:
    """A file as it may look after a broken transfer: bytes changed, cut out, doubled, or its end missing."""
    content_ = bytearray(content)
    for _ in range(draw.randint(1, 8)):
        place = draw.randrange(len(content_))
        change = draw.choice(("byte", "cut", "double", "end"))
        if change == "byte":
            content_[place] = draw.choice(BYTES)
        elif change == "cut":
            del content_[place : place + draw.randint(1, 40)]
        elif change == "double":
            content_[place:place] = content_[place : place + draw.randint(1, 40)]
        elif len(content_) > 100 and draw.random() < 0.3:
            del content_[place:]
        if not content_:
            return b""
    return bytes(content_)


@pytest.mark.parametrize("kind", ["jsonl", "json", "csv", "parquet"])
def test_a_damaged_file_is_read_as_far_as_it_goes_or_refused(
    kind: str, chat_tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    pandas = pytest.importorskip("pandas")
    rows = [ROWS[0] | {"prompt": f"hello {number}"} for number in range(20)]
    whole = tmp_path / f"whole.{kind}"
    if kind == "jsonl":
        whole.write_text("".join(json.dumps(row) + "\n" for row in rows))
    elif kind == "json":
        whole.write_text(json.dumps(rows))
    elif kind == "csv":
        pandas.DataFrame(rows).to_csv(whole, index=False)
    else:
        pandas.DataFrame(rows).to_parquet(whole)
    assert read_and_encode(whole, chat_tokenizer)[0] == 20
    draw = random.Random(kind)
    file = tmp_path / f"rows.{kind}"
    messages = []
    for _ in range(60):
        file.write_bytes(damaged(whole.read_bytes(), draw))
        try:
            read_and_encode(file, chat_tokenizer)
        except UserError as error:
            messages.append(str(error))
    assert all(f"rows.{kind}" in message for message in messages)
    # Of JSONL the lines that are whole are read, and the others counted.
    assert bool(messages) == (kind != "jsonl")


@pytest.mark.parametrize("kind", ["jsonl", "json"])
def test_brackets_without_end_are_refused(kind: str, tmp_path: Path) -> None:
    (file := tmp_path / f"rows.{kind}").write_text("[" * 100_000)
    with pytest.raises(UserError, match=rf"rows\.{kind}.*recursion"):
        list(read_groups(str(file), Counts()))
