"""The DataModules under a Trainer: which rows they take, and training that goes on where a checkpoint stopped."""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from lit_align.data import GroupDataModule, GroupLoader, LabelData, PreferenceData, RankingData, SFTData
from lit_align.data import base as data_base
from lit_align.data import counts as data_counts
from lit_align.errors import UserError
from lit_align.groups import GroupBatch

# Checkpoints are saved by callbacks that the resumed run does without.
pytestmark = pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`, callbacks")


class Recorder(LightningModule):
    """Notes the rows it is trained on and validates on."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast | None, early_loader: bool = False) -> None:
        super().__init__()
        if tokenizer is not None:
            self.tokenizer = tokenizer
        self.early_loader = early_loader
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.trained: list[list[int]] = []
        self.validated: list[list[int]] = []

    def training_step(self, batch: GroupBatch) -> Tensor:
        self.trained.append([] if batch.is_filler else batch.rows.tolist())
        return self.weight.sum()

    def validation_step(self, batch: GroupBatch) -> None:
        self.validated.append([] if batch.is_filler else batch.rows.tolist())

    def configure_optimizers(self) -> torch.optim.Optimizer:
        if self.early_loader:
            assert self.trainer.estimated_stepping_batches > 0
        return torch.optim.SGD(self.parameters(), lr=0.1)


class Doubled:
    """A wrapper that serves every batch twice, and knows which of the two is next."""

    def __init__(self, loader: GroupLoader) -> None:
        self.loader = loader
        self.again: list[int] = []

    def __len__(self) -> int:
        return 2 * len(self.loader)

    def __iter__(self) -> Iterator[GroupBatch]:
        batches = iter(self.loader)
        for _ in range(len(self)):
            if self.again:
                batch = self.loader.collate([self.loader.groups[row] for row in self.again])
                self.again = []
            else:
                batch = next(batches)
                self.again = batch.rows.tolist()
            yield batch

    def position(self) -> dict[str, Any]:
        return {"inner": self.loader.position(), "again": self.again}

    def set_position(self, position: dict[str, Any]) -> None:
        self.loader.set_position(position["inner"])
        self.again = position["again"]


class DoublingRecorder(Recorder):
    """Wraps its loader, as a method with rollouts does."""

    def train_loader(self, loader: GroupLoader) -> Doubled:
        return Doubled(loader)


@pytest.fixture
def tokenizer(word_tokenizer: Callable[..., PreTrainedTokenizerFast]) -> PreTrainedTokenizerFast:
    return word_tokenizer()


@pytest.fixture
def pairs(write_jsonl: Callable[..., str]) -> str:
    """Nine preference pairs."""
    return write_jsonl([{"prompt": letter, "chosen": "x", "rejected": "y z"} for letter in "abcdefghi"], "pairs.jsonl")


def _trainer(folder: Path, callbacks: list[Any] | None = None, **options: Any) -> Trainer:
    defaults = {"max_epochs": 3, "limit_val_batches": 0, "enable_checkpointing": bool(callbacks)}
    return Trainer(
        **{"devices": 1, **defaults, **options},
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=callbacks,
        default_root_dir=folder,
    )


@pytest.mark.parametrize("module", [Recorder, DoublingRecorder])
@pytest.mark.parametrize("early_loader", [False, True])
@pytest.mark.parametrize("options", [{}, {"limit_train_batches": 2}, {"accumulate_grad_batches": 2}])
def test_training_goes_on_from_every_checkpoint(
    tmp_path: Path,
    pairs: str,
    tokenizer: PreTrainedTokenizerFast,
    module: type[Recorder],
    early_loader: bool,
    options: dict[str, int],
) -> None:
    keep = [
        ModelCheckpoint(tmp_path / "step", "{step}", every_n_train_steps=1, save_top_k=-1),
        ModelCheckpoint(tmp_path / "epoch", "{step}-{epoch}", save_top_k=-1, save_on_train_epoch_end=True),
    ]
    whole = module(tokenizer, early_loader)
    _trainer(tmp_path, keep, **options).fit(whole, PreferenceData(pairs, batch_size=2))
    checkpoints = sorted(tmp_path.glob("*/*.ckpt"))
    assert len(checkpoints) > 6
    for checkpoint in checkpoints:
        resumed = module(tokenizer, early_loader)
        _trainer(tmp_path, **options).fit(resumed, PreferenceData(pairs, batch_size=2), ckpt_path=checkpoint)
        progress = torch.load(checkpoint, weights_only=True)["loops"]["fit_loop"]["epoch_loop.batch_progress"]
        assert resumed.trained == whole.trained[progress["total"]["ready"] :]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"train": "others.jsonl"}, r"hash of the rows' text \("),
        ({"train": "fewer.jsonl"}, r"number of rows \(9 then, 8 now\)"),
        (
            {"max_length": 3},
            "Changed: hash of the rows as encoded by tokenizer, template and lengths [^,]* then, [^,]* now",
        ),
        ({"seed": 7}, r"Changed: data.seed \(0 then, 7 now\)"),
        ({"batch_size": 3}, r"Changed: prompts in a batch over all ranks \(2 then, 3 now\)"),
    ],
)
def test_going_on_with_other_data_is_refused(
    tmp_path: Path,
    pairs: str,
    write_jsonl: Callable[..., str],
    tokenizer: PreTrainedTokenizerFast,
    change: dict[str, Any],
    message: str,
) -> None:
    write_jsonl([{"prompt": letter, "chosen": "x", "rejected": "y y"} for letter in "abcdefghi"], "others.jsonl")
    write_jsonl([{"prompt": letter, "chosen": "x", "rejected": "y z"} for letter in "abcdefgh"], "fewer.jsonl")
    trainer = _trainer(tmp_path, max_steps=2)
    trainer.fit(Recorder(tokenizer), PreferenceData(pairs, batch_size=2))
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    if "train" in change:
        change = {"train": str(tmp_path / change["train"])}
    data = PreferenceData(**{"train": pairs, "batch_size": 2, **change})
    with pytest.raises(UserError, match=message):
        _trainer(tmp_path).fit(Recorder(tokenizer), data, ckpt_path=tmp_path / "last.ckpt")


def test_another_trainer_starts_from_the_beginning(
    tmp_path: Path, pairs: str, tokenizer: PreTrainedTokenizerFast
) -> None:
    data = PreferenceData(pairs, batch_size=2)
    first, second = Recorder(tokenizer), Recorder(tokenizer)
    for module in (first, second):
        _trainer(tmp_path, max_epochs=2).fit(module, data)
    assert first.trained == second.trained
    assert first.trained[:5] != first.trained[5:]


def test_validation_sees_every_row_in_order(tmp_path: Path, pairs: str, tokenizer: PreTrainedTokenizerFast) -> None:
    module = Recorder(tokenizer)
    trainer = _trainer(tmp_path, limit_val_batches=1.0, num_sanity_val_steps=2, max_epochs=1)
    trainer.fit(module, PreferenceData(pairs, val=pairs, batch_size=2, val_batch_size=4))
    passes = [[0, 1, 2, 3], [4, 5, 6, 7], [8]]
    assert module.validated == passes[:2] + passes
    module.validated = []
    _trainer(tmp_path, limit_val_batches=1.0).validate(
        module, PreferenceData(pairs, val=pairs, batch_size=4), verbose=False
    )
    assert module.validated == passes


def test_without_validation_rows_there_is_no_validation(
    tmp_path: Path, pairs: str, tokenizer: PreTrainedTokenizerFast
) -> None:
    module = Recorder(tokenizer)
    _trainer(tmp_path, limit_val_batches=1.0, max_epochs=1).fit(module, PreferenceData(pairs))
    assert module.validated == []
    with pytest.raises(UserError, match=r"nothing to validate on: set data\.val"):
        _trainer(tmp_path).validate(module, PreferenceData(pairs))


def test_overfitting_repeats_the_same_batches(tmp_path: Path, pairs: str, tokenizer: PreTrainedTokenizerFast) -> None:
    module = Recorder(tokenizer)
    _trainer(tmp_path, overfit_batches=2, limit_val_batches=1.0).fit(module, PreferenceData(pairs, batch_size=2))
    assert module.trained == [[0, 1], [2, 3]] * 3


def _fit_on_a_rank(pairs: str, tokenizer: PreTrainedTokenizerFast, folder: Path) -> list[list[list[int]]]:
    """What this rank was trained on in a whole run, and in one that goes on after the second step of it."""
    warnings.filterwarnings("ignore", "Be aware that when using `ckpt_path`, callbacks")
    keep = ModelCheckpoint(folder, "two", every_n_train_steps=2, save_top_k=1)
    runs = []
    for callbacks, checkpoint in (([keep], None), ([], folder / "two.ckpt")):
        module = Recorder(tokenizer)
        trainer = _trainer(folder, callbacks, max_epochs=2 if checkpoint else 1, devices=2, strategy="ddp")
        trainer.fit(module, PreferenceData(pairs, batch_size=2), ckpt_path=checkpoint)
        runs.append(module.trained)
    return runs


@pytest.mark.slow
def test_two_ranks_share_the_rows_and_go_on(
    tmp_path: Path, pairs: str, tokenizer: PreTrainedTokenizerFast, on_two_ranks: Callable[..., list[Any]]
) -> None:
    one = Recorder(tokenizer)
    _trainer(tmp_path, max_epochs=2).fit(one, PreferenceData(pairs, batch_size=4))
    ranks = on_two_ranks(_fit_on_a_rank, pairs, tokenizer, tmp_path)
    state = torch.load(tmp_path / "two.ckpt", weights_only=True)["PreferenceData"]
    assert state["positions"] == [{"epoch": 0, "batch": 2}] * 2
    for whole, resumed in ranks:
        assert len(whole) == 3
        assert len(resumed) == 4
    together = [[a + b for a, b in zip(*runs, strict=True)] for runs in zip(*ranks, strict=True)]
    assert together[0] == one.trained[:3]
    assert together[1] == one.trained[2:]


ROWS: dict[str, dict[str, Any]] = {
    "one": {"prompt": "a", "completion": "b"},
    "answered": {"prompt": "a", "response": "b"},
    "labelled": {"prompt": "a", "completion": "b", "label": True},
    "pair": {"prompt": "a", "chosen": "b", "rejected": "c"},
    "scored": {"prompt": "a", "responses": ["b", "c", "d"], "scores": [1, 2, 2]},
    "ranked pair": {"prompt": "a", "responses": ["b", "c"], "ranking": [2, 1]},
    "tied pair": {"prompt": "a", "responses": ["b", "c"], "ranking": [1, 1]},
    "all tied": {"prompt": "a", "responses": ["b", "c", "d"], "scores": [0, 0, 0]},
}


@pytest.mark.parametrize(
    ("kind", "taken", "ties"),
    [
        (SFTData, {"one", "answered"}, set()),
        (PreferenceData, {"pair", "ranked pair"}, {"tied pair"}),
        (RankingData, {"pair", "scored", "ranked pair"}, {"tied pair", "all tied"}),
    ],
)
def test_which_rows_each_kind_takes(
    kind: type[GroupDataModule],
    taken: set[str],
    ties: set[str],
    write_jsonl: Callable[..., str],
    tokenizer: PreTrainedTokenizerFast,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(data_base, "load_tokenizer", lambda config: tokenizer)
    for name, row in ROWS.items():
        data = kind(write_jsonl([row]), tokenizer="words")
        if name in taken:
            data.setup("fit")
            (batch,) = data.train_dataloader()
            assert batch.n_groups == 1
            assert (batch.scores is None) == (kind is SFTData)
        elif name in ties:
            with pytest.raises(UserError, match=r"can be used: .*1 without a preference dropped"):
                data.setup("fit")
        else:
            with pytest.raises(UserError, match=rf"rows\.jsonl, row 1: {kind.__name__} takes .*this row has"):
                data.setup("fit")


@pytest.mark.parametrize(
    ("name", "kind", "message"),
    [
        ("one", PreferenceData, r"and this row has 1 response with neither scores nor a label\.$"),
        ("answered", LabelData, r"and this row has 1 response with neither scores nor a label\.$"),
        ("scored", PreferenceData, r"and this row has 3 responses with scores\. RankingData takes any number\.$"),
        ("labelled", PreferenceData, r"and this row has 1 response with a label\. LabelData takes it\.$"),
        ("labelled", RankingData, r"and this row has 1 response with a label\.$"),
    ],
)
def test_a_row_of_another_kind_is_told_what_it_has(
    name: str,
    kind: type[GroupDataModule],
    message: str,
    write_jsonl: Callable[..., str],
    tokenizer: PreTrainedTokenizerFast,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(data_base, "load_tokenizer", lambda config: tokenizer)
    with pytest.raises(UserError, match=message):
        kind(write_jsonl([ROWS[name]]), tokenizer="words").setup("fit")


def test_what_became_of_the_rows_is_logged(
    tmp_path: Path,
    write_jsonl: Callable[..., str],
    tokenizer: PreTrainedTokenizerFast,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(data_counts, "PROGRESS_SECONDS", 0.0)
    rows = [ROWS["pair"], ROWS["one"], ROWS["tied pair"], {**ROWS["pair"], "chosen": "b c d e"}, "nonsense"]
    data = PreferenceData(write_jsonl(rows), max_length=4, on_bad_row="skip")
    with caplog.at_level(logging.INFO):
        _trainer(tmp_path, max_epochs=1).fit(Recorder(tokenizer), data)
    line = next(record.message for record in caplog.records if "prompts with" in record.message)
    assert "rows.jsonl: 2 prompts with 4 responses" in line
    # The pair cut is [a] and [b c d] with EOS [c]: 1 + 3 + 2 tokens; the other 1 + 2 + 2.
    assert "11 tokens; 2 bad rows skipped; 1 without a preference dropped; 1 responses cut on the right" in line
    assert "row 2: PreferenceData takes pairs" in line
    assert "row 5: expected one JSON object" in line
    assert "rows encoded so far" in caplog.text


def test_several_files_and_the_first_rows_of_them(
    write_jsonl: Callable[..., str], tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(data_base, "load_tokenizer", lambda config: tokenizer)
    first = write_jsonl([{"prompt": letter, "completion": "x"} for letter in "abc"], "first.jsonl")
    second = write_jsonl([{"prompt": letter, "completion": "x"} for letter in "def"], "second.jsonl")
    for limit, prompts in [(None, [4, 5, 6, 7, 8, 9]), (4, [4, 5, 6, 7]), (2, [4, 5])]:
        data = SFTData([first, second], max_rows=limit, tokenizer="words", batch_size=6)
        data.setup("fit")
        (batch,) = data.train_dataloader()
        assert sorted(batch.model_inputs["input_ids"][:, 0].tolist()) == prompts


@pytest.mark.parametrize("kind", [SFTData, PreferenceData, RankingData])
def test_the_embedded_task(kind: type[GroupDataModule]) -> None:
    data = kind("mini_instruct", val="mini_instruct", max_rows=20, tokenizer="mini_instruct", batch_size=10)
    data.setup("fit")
    batches = list(data.train_dataloader())
    assert [batch.n_groups for batch in batches] == [10, 10]
    sizes = torch.cat([torch.bincount(batch.group_index) for batch in batches])
    if kind is RankingData:
        assert sizes.min() >= 4
        assert sizes.max() <= 9
    else:
        assert set(sizes.tolist()) == {1 if kind is SFTData else 2}
    assert len(data.val_dataloader()) == 100


@pytest.mark.parametrize(("kind", "name"), [(PreferenceData, "dpo_en_demo.json"), (SFTData, "alpaca_en_demo.json")])
def test_real_rows(
    kind: type[GroupDataModule],
    name: str,
    shared_data: Path,
    chat_tokenizer: PreTrainedTokenizerFast,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(data_base, "load_tokenizer", lambda config: chat_tokenizer)
    data = kind(str(shared_data / name), tokenizer="chatml", max_rows=40, max_length=20_000, batch_size=7)
    data.setup("fit")
    rows = json.loads((shared_data / name).read_text())
    seen = 0
    for batch in data.train_dataloader():
        texts = [chat_tokenizer.decode(ids) for ids in batch.targets.split(batch.response_lengths.tolist())]
        for g, row in enumerate(batch.rows.tolist()):
            if kind is PreferenceData:
                expected = [rows[row][column]["value"] for column in ("chosen", "rejected")]
            else:
                expected = [rows[row]["output"]]
            assert [texts[n] for n in (batch.group_index == g).nonzero()] == [f"{text}<|im_end|>" for text in expected]
            seen += 1
    assert seen == 40


def test_where_the_tokenizer_comes_from(tmp_path: Path, pairs: str, tokenizer: PreTrainedTokenizerFast) -> None:
    with pytest.raises(UserError, match=r"Without a Trainer, data.tokenizer has to say"):
        PreferenceData(pairs).setup("fit")
    with pytest.raises(UserError, match="Recorder has no attribute `tokenizer`"):
        _trainer(tmp_path).fit(Recorder(None), PreferenceData(pairs))
    with pytest.raises(UserError, match="Recorder brings its own tokenizer"):
        _trainer(tmp_path).fit(Recorder(tokenizer), PreferenceData(pairs, tokenizer="mini_instruct"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"val_batch_size": 4}, "val_batch_size has no effect without val"),
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
        ({"max_rows": 0}, "max_rows must be at least 1"),
        ({"max_prompt_length": 2000}, "smaller than max_length"),
        ({"train": []}, "train names no rows"),
        ({"train": "mini_instruct", "columns": {"prompt": "q"}}, "columns has no effect"),
    ],
)
def test_settings_that_make_no_sense_are_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        SFTData(**{"train": "rows.jsonl", **arguments})


def test_hub_rows_are_fetched_once_on_each_machine(pairs: str, monkeypatch: pytest.MonkeyPatch) -> None:
    fetched: list[str] = []
    monkeypatch.setattr(data_base, "load_from_hub", fetched.append)
    PreferenceData([pairs, "someone/pairs:train", "mini_instruct"], val="someone/pairs:test").prepare_data()
    assert fetched == ["someone/pairs:train", "someone/pairs:test"]


def test_loaders_before_setup_are_refused(pairs: str) -> None:
    with pytest.raises(UserError, match="call setup first"):
        PreferenceData(pairs).train_dataloader()


def test_improvements_are_pairs_and_demonstrations(
    write_jsonl: Callable[..., str], monkeypatch: pytest.MonkeyPatch, tokenizer: PreTrainedTokenizerFast
) -> None:
    monkeypatch.setattr(data_base, "load_tokenizer", lambda config: tokenizer)
    path = write_jsonl(
        [
            {"prompt": "a", "response": "b c d", "edited": "b e d"},
            {"prompt": "f", "response": "g", "edited": "g"},
            {"prompt": "h", "completion": "i"},
        ]
    )

    def rows(data: GroupDataModule) -> list[tuple[list[list[int]], Any, Any]]:
        data.setup("fit")
        groups = data.rows_loader().groups
        return [(list(map(list, groups[i].responses)), groups[i].scores, groups[i].weights) for i in range(len(groups))]

    # One token a letter: b 5, c 6, d 7, e 8, g 10, i 12; EOS 1 closes a response and weighs what its last word does.
    demonstrations = [([[5, 8, 7, 1]], None, None), ([[10, 1]], None, None), ([[12, 1]], None, None)]
    assert rows(SFTData(path, tokenizer="words")) == demonstrations
    weights = [[[0.25, 1.0, 0.25, 0.25]], [[0.25, 0.25]], [[1.0, 1.0]]]
    assert rows(SFTData(path, unchanged_weight=0.25, tokenizer="words")) == [
        (responses, scores, of_row) for (responses, scores, _), of_row in zip(demonstrations, weights, strict=True)
    ]
    # The row that was left as it was is a tie, the one with one response no pair.
    pairs = PreferenceData(path, on_bad_row="skip", tokenizer="words")
    assert rows(pairs) == [([[5, 8, 7, 1], [5, 6, 7, 1]], [1.0, 0.0], None)]


def test_an_unchanged_weight_without_effect_is_refused(
    write_jsonl: Callable[..., str], monkeypatch: pytest.MonkeyPatch, tokenizer: PreTrainedTokenizerFast
) -> None:
    monkeypatch.setattr(data_base, "load_tokenizer", lambda config: tokenizer)
    data = SFTData(write_jsonl([{"prompt": "a", "completion": "b"}]), unchanged_weight=0.5, tokenizer="words")
    with pytest.raises(UserError, match="unchanged_weight has no effect: no training row is an improvement"):
        data.setup("fit")
    with pytest.raises(UserError, match="unchanged_weight must lie between 0 and 1, got 2"):
        SFTData("mini_instruct", unchanged_weight=2.0)


def test_the_rows_loader_is_not_wrapped_and_has_a_position_of_its_own(
    tmp_path: Path, pairs: str, tokenizer: PreTrainedTokenizerFast
) -> None:
    data = PreferenceData(pairs, batch_size=2)
    trainer = _trainer(tmp_path, max_steps=3)
    trainer.fit(DoublingRecorder(tokenizer), data)
    before = data.state_dict()
    loader = data.rows_loader()
    assert isinstance(loader, GroupLoader)
    served = [row for batch in loader for row in batch.rows.tolist()]
    assert sorted(served) == list(range(9))
    assert loader.position() == {"epoch": 1, "batch": 0}
    assert data.state_dict() == before
