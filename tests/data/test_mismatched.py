"""Mismatched pairs: who meets whose prompt, and what a batch then holds."""

from __future__ import annotations

from functools import partial

import pytest
import torch

from lit_align.data import LabelBatch, LabelData, TokenGroups, padded
from lit_align.data import base as data_base
from lit_align.data.mismatched import CollateMismatched
from lit_align.errors import UserError
from lit_align.groups import Group, TokenGroup


def labelled(prompts: list[list[int]], responses: list[list[int]]) -> TokenGroups:
    rows = zip(prompts, responses, strict=True)
    return TokenGroups(
        (Group("", ("",), labels=(row % 2 == 0,)), TokenGroup(prompt, [response], labels=[row % 2 == 0], row=row))
        for row, (prompt, response) in enumerate(rows)
    )


def collate(groups: TokenGroups) -> CollateMismatched:
    return CollateMismatched(groups, partial(padded, pad_id=0))


def test_every_response_meets_a_prompt_that_is_not_its_own() -> None:
    groups = labelled([[2], [2], [2], [3], [3], [4, 5], [2], [2]], [[10 + row, 1] for row in range(8)])
    make = collate(groups)
    prompts = {(2,), (3,), (4, 5)}
    met = set()
    for row in range(8):
        pair = make.mismatch(groups[row])
        assert pair.responses == groups[row].responses
        assert tuple(pair.prompt) in prompts - {tuple(groups[row].prompt)}
        met.add(tuple(pair.prompt))
    assert met == prompts


def test_partners_do_not_depend_on_the_batch() -> None:
    groups = labelled([[row + 2] for row in range(6)], [[20 + row, 1] for row in range(6)])
    make = collate(groups)
    whole = make([groups[row] for row in range(6)]).mismatched.model_inputs["input_ids"]
    for row in range(6):
        alone = make([groups[row]]).mismatched.model_inputs["input_ids"]
        assert torch.equal(alone, whole[row : row + 1])
    # Each prompt is met once: the random order is gone round as a circle.
    assert sorted(whole[:, 0].tolist()) == [2, 3, 4, 5, 6, 7]


def test_a_pair_is_no_longer_than_the_longest_row() -> None:
    # A beginning that both have stays, as BOS does; the longest row has 7 tokens.
    groups = labelled([[9, 2, 3, 4, 5, 6], [9, 7]], [[10], [11, 12, 13, 1]])
    make = collate(groups)
    assert make.mismatch(groups[1]).prompt == [9, 5, 6]
    assert make.mismatch(groups[0]).prompt == [9, 7]
    without_bos = labelled([[9, 2, 3, 4, 5, 6], [8, 7]], [[10], [11, 12, 13, 1]])
    assert collate(without_bos).mismatch(without_bos[1]).prompt == [4, 5, 6]


def test_all_responses_of_a_group_move_together() -> None:
    rows = [TokenGroup([2], [[10, 1], [11, 12, 1]], labels=[True, False], row=0), TokenGroup([3], [[13, 1]] * 2, row=1)]
    rows[1] = rows[1]._replace(labels=[False, True])
    groups = TokenGroups((Group("", ("", "")), row) for row in rows)
    batch = collate(groups)([groups[0]])
    assert batch.mismatched.targets.tolist() == batch.targets.tolist() == [10, 1, 11, 12, 1]
    assert batch.mismatched.model_inputs["input_ids"][:, 0].tolist() == [3, 3]
    assert batch.labels is not None
    assert batch.labels.tolist() == [True, False]


def test_moving_a_batch_moves_its_mismatched_pairs() -> None:
    groups = labelled([[2], [3]], [[10, 1], [11, 1]])
    batch = collate(groups)([groups[0], groups[1]])
    moved = batch.to("meta")
    assert isinstance(moved, LabelBatch)
    assert moved.targets.device.type == moved.mismatched.targets.device.type == "meta"
    assert batch.mismatched.targets.device.type == "cpu"


def test_one_prompt_is_refused() -> None:
    with pytest.raises(UserError, match="at least two"):
        collate(labelled([[2], [2]], [[10, 1], [11, 1]]))


def test_which_rows_are_labelled(write_jsonl, word_tokenizer, monkeypatch) -> None:
    monkeypatch.setattr(data_base, "load_tokenizer", lambda config: word_tokenizer())
    rows = [
        {"prompt": "a", "completion": "x", "label": True},
        {"prompt": "b", "completion": "y z", "label": False},
        {"prompt": "c", "chosen": "x", "rejected": "z"},
        {"prompt": "d", "responses": ["x", "z"], "ranking": [2, 1]},
        {"prompt": "e", "responses": ["x", "z"], "ranking": [1, 1]},
    ]
    data = LabelData(write_jsonl(rows), val=write_jsonl(rows, "val.jsonl"), tokenizer="words", batch_size=8)
    data.setup("fit")
    (batch,) = data.val_dataloader()
    assert batch.labels.tolist() == [True, False, True, False, False, True]
    assert batch.scores is None
    assert batch.rows.tolist() == batch.mismatched.rows.tolist() == [0, 1, 2, 3]
    assert torch.equal(batch.mismatched.response_index, batch.response_index)


@pytest.mark.parametrize(
    "row", [{"prompt": "a", "completion": "b"}, {"prompt": "a", "responses": ["b", "c", "d"], "scores": [1, 2, 3]}]
)
def test_rows_without_labels_are_refused(row, write_jsonl, word_tokenizer, monkeypatch) -> None:
    monkeypatch.setattr(data_base, "load_tokenizer", lambda config: word_tokenizer())
    with pytest.raises(UserError, match="row 1: LabelData takes responses with a label"):
        LabelData(write_jsonl([row]), tokenizer="words").setup("fit")


def test_the_embedded_task_in_worker_processes() -> None:
    data = LabelData("mini_instruct", max_rows=20, tokenizer="mini_instruct", batch_size=10, num_workers=1)
    data.setup("fit")
    batches = list(data.train_dataloader())
    assert [batch.n_responses for batch in batches] == [10, 10]
    labels = torch.cat([batch.labels for batch in batches])
    assert 0 < labels.sum() < 20
    for batch in batches:
        lengths = batch.model_inputs["attention_mask"].sum(1), batch.mismatched.model_inputs["attention_mask"].sum(1)
        texts = [
            [row[:length].tolist() for row, length in zip(of.model_inputs["input_ids"], sizes, strict=True)]
            for of, sizes in zip((batch, batch.mismatched), lengths, strict=True)
        ]
        assert all(own != other for own, other in zip(*texts, strict=True))
