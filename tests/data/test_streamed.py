"""Streamed rows: the same batches as from memory, whatever they are read from, and what streaming cannot do."""

from __future__ import annotations

import csv
import json
import logging
import os
import pickle
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
from lightning.pytorch import Trainer
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from lit_align.data import GroupDataModule, GroupLoader, LabelData, PreferenceData, RankingData, SFTData, padded
from lit_align.data import base as data_base
from lit_align.data import rows as data_rows
from lit_align.data.row_reader import RowError
from lit_align.errors import UserError
from lit_align.groups import GroupBatch
from lit_align.methods import DPO
from lit_align.models import CachedReference, ModelConfig

CHAT = [{"role": "user", "content": "hello"}]

ROWS: dict[type[GroupDataModule], list[dict[str, Any]]] = {
    SFTData: [{"prompt": letter, "completion": f"{letter} x\ny {number}"} for number, letter in enumerate("abcdefghi")],
    PreferenceData: [
        {"prompt": letter, "chosen": "x " * (number + 1), "rejected": "é, z", "margin": number / 3}
        for number, letter in enumerate("abcdefghi")
    ],
    RankingData: [
        {
            "prompt": letter,
            "responses": ["x", "y z", "w"][: 2 + number % 2],
            "scores": [0.1, number, 2][: 2 + number % 2],
        }
        for number, letter in enumerate("abcdefghi")
    ],
    LabelData: [
        {"prompt": letter, "completion": "x y z", "label": number % 3 == 0} for number, letter in enumerate("aabbccdef")
    ],
}
"""Rows that every form can hold."""

FORMS = ["rows.jsonl", "rows.csv", "rows.parquet", "saved", "splits:train", "shards", "someone/rows:train"]


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[list[dict[str, Any]], str], str]:
    """Writes rows in one of `FORMS` and returns its name."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")

    def lines(rows: list[dict[str, Any]]) -> str:
        return "\n\n".join(json.dumps(row, ensure_ascii=False) for row in rows)

    def write(rows: list[dict[str, Any]], form: str) -> str:
        table = datasets.Dataset.from_list(rows)
        if form == "rows.jsonl":
            Path(form).write_text(lines(rows), encoding="utf-8")
        elif form == "rows.csv":
            with Path(form).open("w", encoding="utf-8-sig", newline="") as file:
                cells = csv.writer(file)
                cells.writerows([list(rows[0]), []])
                cells.writerows([v if isinstance(v, str) else json.dumps(v) for v in row.values()] for row in rows)
        elif form == "rows.parquet":
            table.to_parquet(form)
        elif form == "saved":
            table.save_to_disk(form)
        elif form == "splits:train":
            datasets.DatasetDict({"train": table, "test": table.select([0])}).save_to_disk("splits")
        elif form == "shards":
            Path(form).mkdir()
            for number in range(3):
                Path(form, f"part-{number}.jsonl").write_text(lines(rows[number::3]) + "\n", encoding="utf-8")
        else:
            monkeypatch.setattr(data_rows, "load_from_hub", lambda name: table)
        return form

    return write


@pytest.fixture
def tokenizer(word_tokenizer: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> PreTrainedTokenizerFast:
    tokenizer: PreTrainedTokenizerFast = word_tokenizer()
    monkeypatch.setattr(data_base, "load_tokenizer", lambda config: tokenizer)
    return tokenizer


def _same(one: Any, other: Any) -> None:
    """Whether two batches hold the same, in every tensor."""
    assert type(one) is type(other)
    if isinstance(one, Tensor):
        assert one.dtype == other.dtype
        assert torch.equal(one, other)
    elif isinstance(one, GroupBatch):
        assert vars(one).keys() == vars(other).keys()
        for name, value in vars(one).items():
            _same(value, vars(other)[name])
    elif isinstance(one, dict):
        assert one.keys() == other.keys()
        for name, value in one.items():
            _same(value, other[name])
    else:
        assert one == other


def _served(data: GroupDataModule) -> list[Any]:
    """The batches of two epochs and of a validation."""
    data.setup("fit")
    loader = data.rows_loader()
    return [*loader, *loader, *data.val_dataloader()]


def _both(
    kind: type[GroupDataModule], train: str | list[str], **options: Any
) -> tuple[GroupDataModule, GroupDataModule]:
    """A DataModule from memory, and the same streamed, which serve the same."""
    options = {"batch_size": 2, "tokenizer": "words", **options}
    in_memory, streamed = kind(train, **options), kind(train, streaming=True, **options)
    one, other = _served(in_memory), _served(streamed)
    assert len(one) == len(other) > 2
    for of_memory, of_stream in zip(one, other, strict=True):
        _same(of_memory, of_stream)
    return in_memory, streamed


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", ROWS)
def test_the_same_batches_as_from_memory(
    kind: type[GroupDataModule], form: str, write: Callable[..., str], tokenizer: PreTrainedTokenizerFast
) -> None:
    name = write(ROWS[kind], form)
    in_memory, streamed = _both(kind, name, val=name)
    # What the rows say is the same; what stands for their encoding says how it came about.
    one, other = (data.rows_loader().groups.fingerprint for data in (in_memory, streamed))
    assert one[:2] == other[:2]
    assert other.tokens.startswith("streamed ")


@pytest.mark.parametrize(
    "options",
    [
        {"max_rows": 7},
        {"max_length": 4},
        {"layout": "shared", "tokens_per_row": 16},
        {"columns": {"prompt": "q", "chosen": "a", "rejected": "b"}, "on_bad_row": "skip"},
    ],
)
def test_other_arguments_do_what_they_do_from_memory(
    options: dict[str, Any], write_jsonl: Callable[..., str], tokenizer: PreTrainedTokenizerFast
) -> None:
    columns = options.get("columns", {"prompt": "prompt", "chosen": "chosen", "rejected": "rejected"})
    rows: list[Any] = [
        {columns["prompt"]: letter, columns["chosen"]: "x y " * number, columns["rejected"]: "z"}
        for number, letter in enumerate("abcdef", start=1)
    ]
    if "columns" in options:
        rows[1:1] = ["nonsense", {"q": "a", "a": "", "b": "z"}, {"prompt": "a"}]
    first, second = write_jsonl(rows[:4], "first.jsonl"), write_jsonl(rows[4:], "second.jsonl")
    _both(PreferenceData, [first, second], **options)
    if "max_length" not in options:
        _both(PreferenceData, [second, first, second], **options)


def test_ties_improvements_weights_and_early_stops(
    write_jsonl: Callable[..., str], tokenizer: PreTrainedTokenizerFast
) -> None:
    pairs = [
        {"prompt": "a", "response": "b c d", "edited": "b e d"},
        {"prompt": "f", "response": "g", "edited": "g"},
        {"prompt": "h", "chosen": "i j", "rejected": "k", "chosen_weights": [0.3, 2]},
        {"prompt": "l", "chosen": "i j", "rejected": "k"},
        {"prompt": "m", "chosen": "i j", "rejected": "k"},
    ]
    _both(PreferenceData, write_jsonl(pairs), batch_size=1)
    demonstrations = [*pairs[:2], {"prompt": "h", "completion": "i"}]
    _both(SFTData, write_jsonl(demonstrations), unchanged_weight=0.25, batch_size=1)
    labelled = [
        *pairs,
        {"prompt": "n", "prefix": "o p q", "stop": 3},
        {"prompt": "r", "completion": "s", "label": True},
    ]
    _both(LabelData, write_jsonl(labelled))
    with pytest.raises(UserError, match="unchanged_weight has no effect"):
        SFTData(write_jsonl(demonstrations[2:]), unchanged_weight=0.5, streaming=True, tokenizer="words").setup("fit")


def test_chats(write_jsonl: Callable[..., str], chat_tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data_base, "load_tokenizer", lambda config: chat_tokenizer)
    _both(PreferenceData, write_jsonl([{"prompt": CHAT, "chosen": f"yes {n}", "rejected": "no"} for n in range(7)]))


def test_mismatched_pairs_may_be_as_long_as_max_length(
    write_jsonl: Callable[..., str], tokenizer: PreTrainedTokenizerFast
) -> None:
    rows = [
        {"prompt": "a b c d e f", "completion": "g", "label": True},
        {"prompt": "h", "completion": "i j k l", "label": False},
    ]
    for max_length, prompt in [(8, [7, 8, 9]), (10, [5, 6, 7, 8, 9]), (99, [4, 5, 6, 7, 8, 9])]:
        data = LabelData(write_jsonl(rows), streaming=True, max_length=max_length, tokenizer="words", batch_size=2)
        data.setup("fit")
        (batch,) = data.rows_loader()
        of_second = batch.rows.tolist().index(1)
        ids = batch.mismatched.model_inputs["input_ids"][of_second].tolist()
        assert ids[: len(prompt) + 5] == [*prompt, 12, 13, 14, 15, 1]


def test_two_ranks_see_what_one_with_twice_the_batch_sees(
    write: Callable[..., str], tokenizer: PreTrainedTokenizerFast
) -> None:
    data = RankingData(write(ROWS[RankingData], "rows.csv"), max_rows=8, streaming=True, tokenizer="words")
    data.setup("fit")
    groups, collate = data.rows_loader().groups, partial(padded, pad_id=0)
    ranks = [GroupLoader(groups, 2, collate, shuffle=True, rank=rank, world=2) for rank in range(2)]
    together = [a.rows.tolist() + b.rows.tolist() for a, b in zip(*ranks, strict=True)]
    assert together == [batch.rows.tolist() for batch in GroupLoader(groups, 4, collate, shuffle=True)]


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
@pytest.mark.parametrize("form", ["rows.csv", "saved"])
def test_worker_processes(form: str, write: Callable[..., str], tokenizer: PreTrainedTokenizerFast) -> None:
    _both(LabelData, write(ROWS[LabelData], form), num_workers=2)


def test_what_worker_processes_are_sent_may_be_pickled(
    write: Callable[..., str], tokenizer: PreTrainedTokenizerFast
) -> None:
    name = write([{"prompt": "a", "response": "b c d", "edited": "b e d"}] * 3, "rows.jsonl")
    data = SFTData(name, unchanged_weight=0.5, streaming=True, tokenizer="words")
    data.setup("fit")
    data.trainer = "a Trainer, which cannot be sent"  # type: ignore[assignment]
    groups = data._encoded["train"]
    sent = pickle.dumps(groups)
    assert b"which cannot be sent" not in sent
    assert pickle.loads(sent).fetch([2, 0]) == groups.fetch([2, 0])


def test_going_on_in_the_middle_of_an_epoch(
    write: Callable[..., str], write_jsonl: Callable[..., str], tokenizer: PreTrainedTokenizerFast
) -> None:
    name = write(ROWS[PreferenceData], "rows.csv")

    def data(name: str = name, **options: Any) -> GroupDataModule:
        made = PreferenceData(name, batch_size=2, tokenizer="words", **{"streaming": True, **options})
        made.setup("fit")
        return made

    whole = data()
    loader = whole.train_dataloader()
    batches = [*loader, *loader]
    first = data()
    for _ in zip(range(3), first.train_dataloader(), strict=False):
        pass
    state = first.state_dict()
    resumed = data()
    resumed.load_state_dict(state)
    for batch, expected in zip(resumed.train_dataloader(), batches[3:8], strict=True):
        _same(batch, expected)
    changed = [dict(row) for row in ROWS[PreferenceData]]
    changed[4]["chosen"] = "q"
    for other, message in [
        (data(write(changed, "rows.parquet")), r"Changed: hash of the rows' text \("),
        (data(max_length=9), r"Changed: hash of the rows as encoded by .* \(streamed "),
        (data(streaming=False), r"Changed: hash of the rows as encoded by .* \(streamed \w+ then, \w+ now\)"),
    ]:
        other.load_state_dict(state)
        with pytest.raises(UserError, match=message):
            other.train_dataloader()


def test_another_tokenizer_is_another_encoding(
    write: Callable[..., str], word_tokenizer: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    name = write(ROWS[SFTData], "rows.jsonl")
    seen = set()
    longer = word_tokenizer()
    longer.add_tokens("zebra")
    templated = word_tokenizer()
    templated.chat_template = "{{ messages }}"
    for tokenizer in (word_tokenizer(), word_tokenizer(), word_tokenizer(adds_bos=True), longer, templated):
        monkeypatch.setattr(data_base, "load_tokenizer", lambda config, tokenizer=tokenizer: tokenizer)
        data = SFTData(name, streaming=True, tokenizer="words")
        data.setup("fit")
        seen.add(data.rows_loader().groups.fingerprint.tokens)
    assert len(seen) == 4


@pytest.mark.parametrize("num_workers", [0, pytest.param(1, marks=pytest.mark.filterwarnings("ignore:This process"))])
def test_a_row_that_cannot_be_encoded_is_named_when_it_is_reached(
    num_workers: int, write_jsonl: Callable[..., str], chat_tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The generation prompt promises a thought, and the template of a whole chat has none for "no".
    chat_tokenizer.chat_template = chat_tokenizer.chat_template.replace(
        "{{ message['content'] }}",
        "{% if message['role'] == 'assistant' and message['content'] != 'no' %}think {% endif %}{{ message['content'] }}",
    ).replace("assistant\n{% endif %}", "assistant\nthink {% endif %}")
    monkeypatch.setattr(data_base, "load_tokenizer", lambda config: chat_tokenizer)
    rows = [{"prompt": CHAT, "completion": "yes"} for _ in range(150)]
    # The sample that is encoded before training passes it over.
    rows[101]["completion"] = "no"
    name = write_jsonl(rows)
    options = {"streaming": True, "tokenizer": "chatml", "num_workers": num_workers}
    data = SFTData(name, **options)
    data.setup("fit")
    message = r"^[^\n]*rows\.jsonl, row 102: the chat template of 'chatml' does not extend the prompt[^\n]*content\."
    with pytest.raises(RowError, match=f"{message}$"):
        list(data.rows_loader())
    if not num_workers:
        skipping = SFTData(name, on_bad_row="skip", **options)
        skipping.setup("fit")
        with pytest.raises(RowError, match=f"{message} Streamed rows .* on_bad_row: skip cannot leave it out"):
            list(skipping.rows_loader())
        # The first row is in the sample.
        rows[0]["completion"] = "no"
        with pytest.raises(RowError, match=r"row 1: the chat template"):
            SFTData(write_jsonl(rows), **options).setup("fit")


def test_lengths_that_rows_may_not_have(write_jsonl: Callable[..., str], tokenizer: PreTrainedTokenizerFast) -> None:
    rows = [{"prompt": "a", "completion": "b"}, {"prompt": "a", "completion": "b c d e"}]
    long = SFTData(write_jsonl(rows), too_long="raise", max_length=4, streaming=True, tokenizer="words")
    with pytest.raises(UserError, match=r"rows\.jsonl, row 2: 1 tokens of prompt and up to 5 of response exceed"):
        long.setup("fit")
    stop = {"prompt": "a", "prefix": "b c d e", "stop": None}
    stopped = LabelData(write_jsonl([stop]), max_length=4, streaming=True, tokenizer="words")
    with pytest.raises(UserError, match=r"row 1: the early stop lies beyond max_length, and streamed rows cannot"):
        stopped.setup("fit")


def test_malformed_rows_are_found_before_training(
    write_jsonl: Callable[..., str], tokenizer: PreTrainedTokenizerFast, caplog: pytest.LogCaptureFixture
) -> None:
    good = {"prompt": "a", "chosen": "b", "rejected": "c d"}
    rows = [good, "{", {**good, "rejected": ""}, {"prompt": "a", "completion": "b"}, {"prompt": "a"}, good]
    tie = {"prompt": "a", "responses": ["b", "c"], "ranking": [1, 1]}
    name = write_jsonl([*rows, tie])
    options = {"streaming": True, "tokenizer": "words"}
    with pytest.raises(RowError, match="row 2: expected one JSON object"):
        PreferenceData(name, **options).setup("fit")
    with caplog.at_level(logging.INFO):
        PreferenceData(name, on_bad_row="skip", **options).setup("fit")
    assert "2 prompts with 4 responses; 4 bad rows skipped; 1 without a preference dropped\n  skipped: " in caplog.text
    # Each row is [a] and [b] and [c d], the responses with EOS: 1 + 2 + 3 tokens.
    assert "streamed; a sample of them: 2 prompts with 4 responses, 12 tokens" in caplog.text
    with pytest.raises(UserError, match=r"no row of .* can be used: 0 prompts .*1 without a preference dropped"):
        PreferenceData(write_jsonl([tie]), **options).setup("fit")


@pytest.mark.filterwarnings("ignore:.* rows of data.val have a prompt of data.train")
def test_a_cached_reference_of_streamed_rows(
    write_jsonl: Callable[..., str], quickstart_models: Path, tmp_path: Path
) -> None:
    rows = [
        {"prompt": f"tell me about {animal}", "chosen": f"{animal} are lovely", "rejected": "um"}
        for animal in ("cats", "dogs", "fish", "birds", "bees")
    ]
    name = write_jsonl(rows)
    losses = []
    for streaming in (False, True):
        torch.manual_seed(0)
        policy = ModelConfig(str(quickstart_models / "sft"))
        module = DPO(policy, reference=CachedReference(str(tmp_path / "logps")))
        trainer = Trainer(
            accelerator="cpu",
            max_epochs=2,
            logger=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            enable_checkpointing=False,
            default_root_dir=tmp_path,
        )
        trainer.fit(module, PreferenceData(name, val=name, batch_size=2, streaming=streaming))
        losses.append((trainer.callback_metrics["train/loss"], trainer.callback_metrics["val/loss"]))
    assert losses[0] == losses[1]
    # Two files, one for streamed rows and one for those in memory; training and validation have the same rows.
    assert len(list((tmp_path / "logps").iterdir())) == 2


def test_a_file_that_changes_under_a_run_is_refused(
    write_jsonl: Callable[..., str], tokenizer: PreTrainedTokenizerFast
) -> None:
    name = write_jsonl(ROWS[SFTData])
    data = SFTData(name, streaming=True, tokenizer="words")
    data.setup("fit")
    batches = iter(data.rows_loader())
    next(batches)
    found = os.stat(name)
    os.utime(name, ns=(found.st_atime_ns, found.st_mtime_ns + 1))
    with pytest.raises(UserError, match=r"rows\.jsonl was changed or removed since the run began"):
        next(batches)
    os.remove(name)
    with pytest.raises(UserError, match=r"rows\.jsonl was changed or removed since the run began"):
        next(iter(data.rows_loader()))


def test_what_has_no_rows_to_stream_is_refused(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    with pytest.raises(UserError, match="mini_instruct is drawn in memory, so streaming has no effect on it"):
        SFTData("rows.jsonl", val="mini_instruct", streaming=True)
    with pytest.raises(UserError, match="too late to drop it: set too_long to cut or raise"):
        SFTData("rows.jsonl", too_long="drop", streaming=True)
    (tmp_path / "rows.json").write_text("not read")
    for name in ("rows.json", ""):
        data = SFTData(str(tmp_path / name), streaming=True, tokenizer="words")
        with pytest.raises(UserError, match=r"one JSON value, .*Convert it to JSONL \(jq -c '\.\[\]' rows\.json >"):
            data.setup("fit")
    with pytest.raises(UserError, match="There is no file"):
        SFTData(str(tmp_path / "row.jsonl"), streaming=True, tokenizer="words").setup("fit")
