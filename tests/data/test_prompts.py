from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from lit_align.data import base as data_base
from lit_align.data.counts import Counts
from lit_align.data.encoding import Encoder, Lengths
from lit_align.data.loader import GroupLoader
from lit_align.data.mini_instruct import PROMPTS
from lit_align.data.prompts import PromptBatch, PromptData, prompt_batch, read_prompts
from lit_align.data.row_reader import RowError
from lit_align.data.token_groups import TokenGroups
from lit_align.errors import UserError
from lit_align.groups import Group, TokenGroup

USER = {"role": "user", "content": "hello"}
BRIEF = {"role": "system", "content": "be brief"}
ANSWER = {"role": "assistant", "content": "there"}


@pytest.fixture
def tokenizer(
    word_tokenizer: Callable[..., PreTrainedTokenizerFast], monkeypatch: pytest.MonkeyPatch
) -> PreTrainedTokenizerFast:
    """One token a letter, a is 4; `data.tokenizer: words` finds it."""
    words = word_tokenizer()
    monkeypatch.setattr(data_base, "load_tokenizer", lambda config: words)
    return words


def served(data: PromptData) -> list[PromptBatch]:
    data.setup("fit")
    return list(data.train_dataloader())


@pytest.mark.parametrize(
    ("row", "prompt"),
    [
        ({"prompt": "a"}, "a"),
        ({"prompt": [USER]}, [USER]),
        ({"prompt": "a", "completion": "b"}, "a"),
        ({"prompt": "a", "completion": ""}, "a"),
        ({"prompt": "a", "chosen": "b", "rejected": "c"}, "a"),
        ({"prompt": "a", "responses": ["b", "c"], "scores": [1, 2]}, "a"),
        ({"prompt": "a", "responses": [], "scores": [float("nan")]}, "a"),
        ({"messages": [USER, ANSWER]}, [USER]),
        ({"messages": [USER]}, [USER]),
        ({"messages": [USER, ANSWER, USER]}, [USER, ANSWER, USER]),
        ({"conversations": [{"from": "human", "value": "hello"}]}, [USER]),
        ({"prompt": "hello", "chosen": [USER, ANSWER], "rejected": [USER, ANSWER]}, [USER]),
        (
            {"chosen": "\n\nHuman: a\n\nAssistant: b", "rejected": "\n\nHuman: a\n\nAssistant: c"},
            "\n\nHuman: a\n\nAssistant:",
        ),
        ({"instruction": "a", "output": "b"}, [{"role": "user", "content": "a"}]),
        ({"prompt": "a", "response": "b"}, "a"),
        ({"prompt": "a", "response": ""}, "a"),
        ({"messages": [USER], "system": "be brief"}, [BRIEF, USER]),
        ({"conversations": [USER, ANSWER], "system": "be brief"}, [BRIEF, USER]),
    ],
)
def test_rows_of_every_kind_have_a_prompt(row: dict[str, Any], prompt: Any, write_jsonl: Callable[..., str]) -> None:
    (group,) = read_prompts(write_jsonl([row]), Counts())
    assert group.prompt == prompt
    assert group.responses == ()
    assert group.source.endswith("rows.jsonl, row 1")


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"words": "a"}, "make no known kind of row"),
        ({"text": "a"}, "plain text has no prompt"),
        ({"prompt": " "}, "column 'prompt': expected a text that is not empty"),
        ({"prompt": [USER, ANSWER]}, "a prompt that ends before the assistant's turn"),
        ({"messages": [{"role": "robot", "content": "a"}]}, "expected a role out of"),
        ({"prompt": "hello", "chosen": [USER, ANSWER], "rejected": [ANSWER]}, "column 'rejected'"),
        ({"messages": [USER], "system": 3}, "column 'system': expected a text"),
        ("[1]", "expected an object with columns"),
        ("{", "expected one JSON object"),
    ],
)
def test_rows_without_a_prompt_are_refused_or_skipped(row: Any, message: str, write_jsonl: Callable[..., str]) -> None:
    path = write_jsonl([row, {"prompt": "a"}])
    with pytest.raises(RowError, match=message):
        list(read_prompts(path, Counts()))
    counts = Counts("skip")
    assert [group.prompt for group in read_prompts(path, counts)] == ["a"]
    assert counts.bad == 1


def test_columns_go_by_other_names(write_jsonl: Callable[..., str]) -> None:
    path = write_jsonl([{"question": "a", "prompt": "other"}])
    assert [group.prompt for group in read_prompts(path, Counts(), {"prompt": "question"})] == ["a"]
    with pytest.raises(RowError, match="names 'query', the row has question, prompt"):
        list(read_prompts(path, Counts(), {"prompt": "query"}))


def test_batches_have_text_tokens_and_rows(write_jsonl: Callable[..., str], tokenizer: PreTrainedTokenizerFast) -> None:
    rows = [{"prompt": "a b"}, {"prompt": "c", "completion": "d"}, {"prompt": "e e e"}]
    batches = served(PromptData(write_jsonl(rows), batch_size=2, tokenizer="words"))
    assert [len(batch) for batch in batches] == [2, 1]
    found = [item for b in batches for item in zip(b.rows, b.prompts, b.prompt_ids, strict=True)]
    assert sorted(found) == [(0, "a b", [4, 5]), (1, "c", [6]), (2, "e e e", [8, 8, 8])]
    assert batches[0].to("meta") is batches[0]
    assert not batches[0].is_filler


def test_chats_end_with_the_generation_prompt(
    write_jsonl: Callable[..., str], chat_tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(data_base, "load_tokenizer", lambda config: chat_tokenizer)
    (batch,) = served(PromptData(write_jsonl([{"messages": [USER, ANSWER]}]), tokenizer="chatml"))
    assert batch.prompts == [[USER]]
    text = "<|im_start|>user\nhello<|im_end|>\n<|im_start|>assistant\n"
    assert chat_tokenizer.decode(batch.prompt_ids[0]) == text


def test_tokens_are_those_that_supervised_training_has(
    write_jsonl: Callable[..., str], chat_tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(data_base, "load_tokenizer", lambda config: chat_tokenizer)
    group = Group([USER], ("there",))
    ((_, trained),) = Encoder(chat_tokenizer, Lengths(), Counts()).encode([group])
    (batch,) = served(PromptData(write_jsonl([{"messages": [USER, ANSWER]}]), tokenizer="chatml"))
    assert batch.prompt_ids == [trained.prompt]


def test_a_template_that_only_fits_the_prompt_is_enough(
    write_jsonl: Callable[..., str], chat_tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(data_base, "load_tokenizer", lambda config: chat_tokenizer)
    chat_tokenizer.chat_template = "{% if add_generation_prompt %}ask:{% else %}{{ raise_exception('no') }}{% endif %}"
    (batch,) = served(PromptData(write_jsonl([{"messages": [USER, ANSWER]}]), tokenizer="chatml"))
    assert chat_tokenizer.decode(batch.prompt_ids[0]) == "ask:"


def test_long_prompts_lose_their_beginning(
    write_jsonl: Callable[..., str],
    word_tokenizer: Callable[..., PreTrainedTokenizerFast],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    path = write_jsonl([{"prompt": "a b c d"}])
    for adds_bos, expected in [(False, [5, 6, 7]), (True, [2, 6, 7])]:
        words = word_tokenizer(adds_bos=adds_bos)
        monkeypatch.setattr(data_base, "load_tokenizer", lambda config, words=words: words)
        (batch,) = served(PromptData(path, max_prompt_length=3, tokenizer="words"))
        assert batch.prompt_ids == [expected]
        assert batch.prompts == ["a b c d"]


def test_a_prompt_of_just_the_limit_is_left_alone(
    write_jsonl: Callable[..., str], tokenizer: PreTrainedTokenizerFast
) -> None:
    for too_long in ("cut", "drop", "raise"):
        data = PromptData(write_jsonl([{"prompt": "a b c"}]), max_prompt_length=3, too_long=too_long, tokenizer="words")  # type: ignore[arg-type]
        assert served(data)[0].prompt_ids == [[4, 5, 6]]


def test_long_prompts_are_dropped_or_refused_where_that_is_asked_for(
    write_jsonl: Callable[..., str], tokenizer: PreTrainedTokenizerFast
) -> None:
    path = write_jsonl([{"prompt": "a b c d"}, {"prompt": "e"}])
    (batch,) = served(PromptData(path, max_prompt_length=3, too_long="drop", tokenizer="words"))
    assert (batch.prompts, batch.prompt_ids, batch.rows) == (["e"], [[8]], [0])
    with pytest.raises(UserError, match=r"row 1: a prompt of 4 tokens exceeds max_prompt_length \(3\)"):
        served(PromptData(path, max_prompt_length=3, too_long="raise", tokenizer="words"))


def test_duplicates_are_dropped_and_everything_is_counted(
    write_jsonl: Callable[..., str], tokenizer: PreTrainedTokenizerFast, caplog: pytest.LogCaptureFixture
) -> None:
    first = write_jsonl([{"prompt": "a"}, {"prompt": "a", "completion": "b"}, {"prompt": "b b b"}, "{"], "first.jsonl")
    second = write_jsonl([{"prompt": "b b b"}, {"prompt": "c"}], "second.jsonl")
    data = PromptData([first, second], max_prompt_length=2, on_bad_row="skip", tokenizer="words")
    with caplog.at_level(logging.INFO):
        (batch,) = served(data)
    assert sorted(batch.prompts) == ["a", "b b b", "c"]
    expected = "second.jsonl: 3 prompts, 4 tokens; 2 duplicates dropped; 1 bad rows skipped; 1 cut on the left"
    assert expected in caplog.text


def test_validation_may_repeat_training_prompts(
    write_jsonl: Callable[..., str], tokenizer: PreTrainedTokenizerFast
) -> None:
    path = write_jsonl([{"prompt": letter} for letter in "abcab"])
    data = PromptData(path, val=path, batch_size=1, val_batch_size=2, tokenizer="words")
    data.setup("fit")
    assert [batch.prompts for batch in data.val_dataloader()] == [["a", "b"], ["c"]]


def test_max_rows_counts_different_prompts(write_jsonl: Callable[..., str], tokenizer: PreTrainedTokenizerFast) -> None:
    path = write_jsonl([{"prompt": letter} for letter in "aabbcc"])
    (batch,) = served(PromptData(path, max_rows=2, tokenizer="words"))
    assert sorted(batch.prompts) == ["a", "b"]


def test_the_embedded_task_repeats_its_prompts() -> None:
    data = PromptData("mini_instruct", val="mini_instruct", max_rows=20, batch_size=20, tokenizer="mini_instruct")
    (batch,) = served(data)
    counts = {prompt: batch.prompts.count(prompt) for prompt in PROMPTS}
    assert counts == {prompt: 3 if number < 4 else 2 for number, prompt in enumerate(PROMPTS)}
    assert sum(map(len, data.val_dataloader())) == 1000
    (one,) = served(PromptData("mini_instruct", max_rows=1, tokenizer="mini_instruct"))
    assert one.prompts == [PROMPTS[0]]


def test_nothing_usable_is_an_error(write_jsonl: Callable[..., str], tokenizer: PreTrainedTokenizerFast) -> None:
    data = PromptData(write_jsonl([{"text": "a"}]), on_bad_row="skip", tokenizer="words")
    with pytest.raises(UserError, match=r"no prompt of .* can be used: 0 prompts, 0 tokens; 1 bad rows skipped"):
        data.setup("fit")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"max_prompt_length": 0}, "max_prompt_length must be at least 1, got 0"),
        ({"val_batch_size": 4}, "val_batch_size has no effect without val"),
        ({"max_rows": 0}, "max_rows must be at least 1"),
    ],
)
def test_settings_that_make_no_sense_are_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        PromptData(**{"train": "rows.jsonl", **arguments})


def test_ranks_share_the_prompts_and_a_rank_without_one_gets_a_filler() -> None:
    texts = ["a", "b", "c"]
    rows = TokenGroups((Group(text, ()), TokenGroup([i], [], row=i)) for i, text in enumerate(texts))
    collate: Any = partial(prompt_batch, texts=texts)
    ranks: list[Any] = [list(GroupLoader(rows, 1, collate, shuffle=False, rank=rank, world=2)) for rank in range(2)]
    assert [[batch.prompts for batch in rank] for rank in ranks] == [[["a"], ["c"]], [["b"], ["a"]]]
    assert [[batch.is_filler for batch in rank] for rank in ranks] == [[False, False], [False, True]]


class Recorder(LightningModule):
    """Notes the prompts it is handed, and wraps its loader as a method with rollouts does."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast) -> None:
        super().__init__()
        self.tokenizer = tokenizer
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.seen: list[list[Any]] = []
        self.validated: list[list[Any]] = []
        self.wrapped = 0

    def train_loader(self, loader: GroupLoader) -> GroupLoader:
        self.wrapped += 1
        return loader

    def training_step(self, batch: PromptBatch) -> Tensor:
        self.seen.append(batch.prompts)
        return self.weight.sum()

    def validation_step(self, batch: PromptBatch) -> None:
        self.validated.append(batch.prompts)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def _trainer(folder: Path, steps: int) -> Trainer:
    return Trainer(
        max_steps=steps,
        num_sanity_val_steps=0,
        accelerator="cpu",
        devices=1,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        default_root_dir=folder,
    )


@pytest.mark.filterwarnings(
    "ignore:.*does not have many workers", "ignore:You're resuming from a checkpoint that ended"
)
@pytest.mark.parametrize("stop", [1, 3, 4])
def test_training_goes_on_with_the_next_prompts(
    tmp_path: Path, write_jsonl: Callable[..., str], tokenizer: PreTrainedTokenizerFast, stop: int
) -> None:
    path = write_jsonl([{"prompt": letter} for letter in "abcdefg"])
    whole, first, second = (Recorder(tokenizer) for _ in range(3))
    _trainer(tmp_path, 7).fit(whole, PromptData(path, val=path, batch_size=2, val_batch_size=4))
    trainer = _trainer(tmp_path, stop)
    trainer.fit(first, PromptData(path, val=path, batch_size=2))
    trainer.save_checkpoint(tmp_path / "part.ckpt")
    _trainer(tmp_path, 7).fit(second, PromptData(path, val=path, batch_size=2), ckpt_path=tmp_path / "part.ckpt")
    assert first.seen + second.seen == whole.seen
    assert len(whole.seen) == 7
    assert whole.validated == [["a", "b", "c", "d"], ["e", "f", "g"]]
    assert whole.wrapped == 1
