"""Encoded rows on disk: the same rows, counts and weights as without, and nothing stale or damaged is trusted."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import datasets
import pytest
from lightning.pytorch import LightningModule, Trainer
from transformers import PreTrainedTokenizerFast

from lit_align.data import Encoder, GroupDataModule, PreferenceData, PromptData, SFTData, TokenGroups
from lit_align.data import encoded_cache as cache_module
from lit_align.data.counts import Counts
from lit_align.data.encoded_cache import OF_RUN, one_rank_first
from lit_align.errors import UserError
from lit_align.groups import Group

PAIRS = [
    {"prompt": "a b", "chosen": "c d e", "rejected": "f"},
    {"prompt": "g", "chosen": "h", "rejected": "i", "margin": 0.5},
    {"prompt": "tie", "responses": ["a", "b"], "scores": [1, 1]},
    {"prompt": "bad", "chosen": "", "rejected": "x"},
    {"prompt": "j k l m n o p q", "chosen": "r s t", "rejected": "u"},
]


@pytest.fixture(autouse=True)
def log(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    caplog.set_level(logging.INFO)
    return caplog


@pytest.fixture
def start(word_tokenizer: Callable[..., PreTrainedTokenizerFast], tmp_path: Path) -> Callable[..., GroupDataModule]:
    """Sets up a DataModule as a new process would, with a cache."""

    def run(train: str, kind: type[GroupDataModule] = PreferenceData, tokenizer: object = None, **given: object):
        given = {"on_bad_row": "skip", "max_length": 8, "cache": str(tmp_path / "cache"), **given}
        data = kind(train, **given)
        module = LightningModule()
        module.tokenizer = word_tokenizer() if tokenizer is None else tokenizer
        data.trainer = SimpleNamespace(lightning_module=module, world_size=1, global_step=0, fast_dev_run=0)
        data.trainer.distributed_sampler_kwargs = data.trainer.accelerator = None
        data.setup("fit")
        return data

    return run


@pytest.fixture
def encoded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The rows that were encoded since."""
    rows: list[str] = []
    encode = Encoder.encode

    def note(self: Encoder, groups):
        return encode(self, (rows.append(group.source) or group for group in groups))

    monkeypatch.setattr(Encoder, "encode", note)
    return rows


def kept(tmp_path: Path) -> list[Path]:
    return sorted((tmp_path / "cache").glob("*")) if (tmp_path / "cache").exists() else []


def all_rows(data: GroupDataModule) -> list[tuple[str, object]]:
    return [data.training_row(row) for row in range(len(data._encoded["train"]))]


def test_a_second_start_has_the_same_rows_and_encodes_none(start, write_jsonl, encoded, log, tmp_path: Path):
    rows = write_jsonl(PAIRS)
    without = start(rows, cache=None)
    assert kept(tmp_path) == []
    first = start(rows)
    assert len(encoded) == 6
    told = [record.message for record in log.records if record.message.startswith("data.train")]
    assert told[0] == told[1]
    for words in (
        "3 prompts with 6 responses",
        "1 bad rows skipped",
        "1 without a preference dropped",
        "1 prompts cut",
    ):
        assert words in told[0]
    log.clear()
    second = start(rows)
    assert len(encoded) == 6
    assert [record.message for record in log.records if record.message.startswith("data.train")] == told[:1]
    assert all_rows(without) == all_rows(first) == all_rows(second)
    identities = [data.train_dataloader().identity() for data in (without, first, second)]
    assert identities[0] == identities[1] == identities[2]
    assert len(kept(tmp_path)) == 1


def test_any_number_of_threads_encodes_the_same(start, write_jsonl, chat_tokenizer, monkeypatch: pytest.MonkeyPatch):
    turns = [{"role": "user", "content": "hello there\n\n"}]
    rows = write_jsonl([{"prompt": turns, "chosen": "hello " * n, "rejected": "there" * n} for n in range(1, 60)])
    encoded = {}
    for parallel in ("true", "false"):
        monkeypatch.setenv("TOKENIZERS_PARALLELISM", parallel)
        data = start(rows, tokenizer=chat_tokenizer, cache=None, max_length=500, on_bad_row="raise")
        encoded[parallel] = all_rows(data)
    assert encoded["true"] == encoded["false"]


def test_scores_labels_margins_and_weights_come_back(start, write_jsonl, word_tokenizer, tmp_path: Path):
    rows = write_jsonl([{"prompt": "a", "response": "b c d", "edited": "b x d"}, {"prompt": "e", "completion": "f"}])
    first = start(rows, SFTData, unchanged_weight=0.25)
    second = start(rows, SFTData, unchanged_weight=0.25)
    assert all_rows(first) == all_rows(second)
    assert second._encoded["train"][0].weights[0][:3] == [0.25, 1.0, 0.25]
    with pytest.raises(UserError, match="unchanged_weight has no effect"):
        start(write_jsonl([{"prompt": "e", "completion": "f"}], "plain.jsonl"), SFTData, unchanged_weight=0.25)
    with pytest.raises(UserError, match="unchanged_weight has no effect"):
        start(str(tmp_path / "plain.jsonl"), SFTData, unchanged_weight=0.25)


class LongOnly(PreferenceData):
    def __init__(self, *args, least: int = 1, **rows) -> None:
        super().__init__(*args, **rows)
        self._least = least

    def accept(self, group: Group) -> Group | None:
        taken = super().accept(group)
        return taken if taken and len(taken.responses[0].split()) >= self._least else None


def test_whatever_decides_the_encoding_makes_a_file_of_its_own(start, write_jsonl, word_tokenizer, encoded, tmp_path):
    rows = write_jsonl(PAIRS)
    start(rows)
    templated = word_tokenizer()
    templated.chat_template = "{{ messages }}"
    splitting = word_tokenizer()
    splitting.split_special_tokens = True
    larger = word_tokenizer()
    larger.add_tokens(["zz"])
    changes: list[dict[str, object]] = [
        {"max_length": 7},
        {"max_prompt_length": 3},
        {"too_long": "drop"},
        {"max_rows": 2},
        {"columns": {"prompt": "prompt", "chosen": "rejected", "rejected": "chosen"}},
        {"tokenizer": templated},
        {"tokenizer": splitting},
        {"tokenizer": larger},
        {"tokenizer": word_tokenizer(adds_bos=True)},
        {"kind": LongOnly, "least": 1},
        {"kind": LongOnly, "least": 3},
    ]
    for number, change in enumerate(changes, start=2):
        before = len(encoded)
        start(rows, **change)
        assert len(encoded) > before, change
        assert len(kept(tmp_path)) == number, change
    for harmless in ({"batch_size": 2}, {"seed": 3}, {"num_workers": 1}, {"layout": "shared"}, *changes):
        before = len(encoded)
        start(rows, **harmless)
        assert len(encoded) == before, harmless
    Path(rows).write_text(Path(rows).read_text().replace('"h"', '"w"'))
    changed = start(rows)
    assert len(kept(tmp_path)) == len(changes) + 2
    assert changed.training_row(1)[1].responses[0] == [26, 1]


def test_code_and_day_count_where_they_decide(start, write_jsonl, word_tokenizer, monkeypatch, tmp_path: Path):
    dated = word_tokenizer()
    dated.chat_template = "{{ strftime_now('%d %B') }}{{ messages }}"
    rows = write_jsonl(PAIRS)
    days = iter(["2024-02-29", "2024-02-29", "2024-03-01", "2024-03-01"])
    monkeypatch.setattr(cache_module, "date", SimpleNamespace(today=lambda: next(days)))
    for files in (1, 1, 2):
        start(rows, tokenizer=dated)
        assert len(kept(tmp_path)) == files
    other = tmp_path / "other.py"
    other.write_text("changed = 1")
    monkeypatch.setattr(cache_module, "_code", lambda kind: [other])
    start(rows, tokenizer=dated)
    other.write_text("changed = 2")
    monkeypatch.setattr(cache_module, "date", SimpleNamespace(today=lambda: "2024-03-01"))
    start(rows, tokenizer=dated)
    assert len(kept(tmp_path)) == 4


@pytest.mark.parametrize("damage", ["cut", "empty", "token", "count", "text", "foreign"])
def test_a_damaged_file_is_not_trusted(damage: str, start, write_jsonl, encoded, tmp_path: Path):
    rows = write_jsonl(PAIRS)
    first = start(rows)
    (file,) = kept(tmp_path)
    content = file.read_bytes()
    header = int.from_bytes(content[:8], "little") + 8
    broken = {
        "cut": content[:-3],
        "empty": b"",
        "token": content[:header] + bytes([content[header] ^ 1]) + content[header + 1 :],
        "count": content.replace(b'\\"ties\\": 1', b'\\"ties\\": 2'),
        "text": re.sub(rb'"text":"[0-9a-f]', rb'"text":"x', content),
        "foreign": b"\x02\0\0\0\0\0\0\0{}",
    }[damage]
    assert broken != content
    file.write_bytes(broken)
    before = len(encoded)
    with pytest.warns(UserWarning, match="is damaged .* encoded anew"):
        again = start(rows)
    assert len(encoded) == 2 * before
    assert all_rows(again) == all_rows(first)
    start(rows)
    assert len(encoded) == 2 * before


def test_a_start_that_is_killed_while_it_writes_leaves_no_file_that_is_read(
    start, write_jsonl, encoded, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    rows = write_jsonl(PAIRS)
    save = cache_module.save_file

    def killed(arrays, path: Path, noted) -> None:
        path.write_bytes(b"half of it")
        raise KeyboardInterrupt

    monkeypatch.setattr(cache_module, "save_file", killed)
    with pytest.raises(KeyboardInterrupt):
        start(rows)
    assert kept(tmp_path) == []
    monkeypatch.setattr(cache_module, "save_file", save)
    start(rows)
    assert [file.suffix for file in kept(tmp_path)] == [".safetensors"]


@pytest.mark.parametrize("folder", ["file", "a name longer than any disk takes" * 20])
def test_a_cache_that_cannot_be_written_is_no_reason_to_stop(folder: str, start, write_jsonl, tmp_path: Path):
    (tmp_path / "file").write_text("where the folder should be")
    with pytest.warns(UserWarning, match=re.escape("could not be kept for the next start")):
        assert len(all_rows(start(write_jsonl(PAIRS), cache=str(tmp_path / folder)))) == 3


def test_a_dry_run_writes_nothing(word_tokenizer, write_jsonl, tmp_path: Path):
    data = PreferenceData(write_jsonl(PAIRS[:2]), cache=str(tmp_path / "cache"))
    module = LightningModule()
    module.tokenizer = word_tokenizer()
    data.trainer = Trainer(fast_dev_run=True, accelerator="cpu", logger=False, enable_progress_bar=False)
    data.trainer.strategy.connect(module)
    data.setup("fit")
    assert kept(tmp_path) == []


def test_a_saved_folder_is_known_by_what_is_in_it(start, encoded, tmp_path: Path):
    for chosen, expected in (("a", 1), ("a", 1), ("b", 2)):
        folder = tmp_path / "saved"
        datasets.Dataset.from_dict({"prompt": ["x"], "chosen": [chosen], "rejected": ["c"]}).save_to_disk(folder)
        start(str(folder))
        assert len(encoded) == expected


def test_what_has_no_effect_or_no_name_is_refused(start, write_jsonl, word_tokenizer, tmp_path: Path):
    rows = write_jsonl(PAIRS)
    with pytest.raises(UserError, match="cache has no effect, because streamed rows"):
        PreferenceData(rows, streaming=True, cache="x")
    with pytest.raises(UserError, match="cache has no effect, because mini_instruct is drawn anew"):
        PreferenceData("mini_instruct", cache="x")
    slow = word_tokenizer()
    slow.__class__ = type("Slow", (PreTrainedTokenizerFast,), {"is_fast": property(lambda self: False)})
    with pytest.raises(UserError, match=r"Slow has no tokenizer\.json"):
        start(rows, tokenizer=slow)
    with pytest.raises(UserError, match=r"PreferenceData\.columns is .* no telling"):
        start(rows, columns={"prompt": object()})
    assert "cache" not in PromptData.__init__.__annotations__
    assert kept(tmp_path) == []


def test_only_settings_of_the_run_are_left_out_of_the_name():
    assert set(vars(PreferenceData("rows.jsonl"))) - OF_RUN == {"lengths", "on_bad_row", "columns"}


class Strategy:
    """Broadcasts as two ranks would see it, one after the other."""

    def __init__(self) -> None:
        self.said: list[str | None] = []

    def broadcast(self, what: str | None) -> str | None:
        self.said.append(what)
        return self.said[0]


def test_rank_0_goes_first_and_the_others_share_its_fate():
    strategy, order = Strategy(), []
    for rank in (0, 1):
        trainer = SimpleNamespace(world_size=2, global_rank=rank, strategy=strategy)
        one_rank_first(trainer, lambda rank=rank: order.append((rank, len(strategy.said))) or TokenGroups([]))
    assert order == [(0, 0), (1, 2)]

    def fail() -> TokenGroups:
        raise ValueError("row 3")

    strategy = Strategy()
    for rank, error in ((0, ValueError), (1, UserError)):
        with pytest.raises(error, match="row 3"):
            one_rank_first(SimpleNamespace(world_size=2, global_rank=rank, strategy=strategy), fail)


def set_up_on_a_rank(rows: str, cache: str) -> tuple[int, str]:
    encoded: list[Counts] = []
    encode = Encoder.encode
    Encoder.encode = lambda self, groups: encoded.append(self.counts) or encode(self, groups)  # type: ignore[method-assign]
    data = PreferenceData(rows, cache=cache, tokenizer="mini_instruct")
    trainer = Trainer(accelerator="cpu", devices=2, strategy="ddp", logger=False, enable_progress_bar=False)
    trainer.strategy.setup_environment()
    trainer.strategy.connect(LightningModule())
    data.trainer = trainer
    data.setup("fit")
    return len(encoded), json.dumps(data._encoded["train"].fingerprint)


@pytest.mark.slow
def test_of_two_ranks_one_encodes(on_two_ranks, write_jsonl, tmp_path: Path):
    rows = write_jsonl([{"prompt": "tell me", "chosen": "cats", "rejected": "dogs"}] * 3)
    (first, one), (second, other) = on_two_ranks(set_up_on_a_rank, rows, str(tmp_path / "cache"))
    assert (first, second) == (1, 0)
    assert one == other
