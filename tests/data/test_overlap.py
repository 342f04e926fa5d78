"""Prompts of the validation rows that are trained on too."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from transformers import PreTrainedTokenizerFast

from lit_align.data import PreferenceData, TokenGroups
from lit_align.data.overlap import overlap
from lit_align.groups import Group, TokenGroup


def rows_of(*prompts: list[int]) -> TokenGroups:
    return TokenGroups((Group("", ("",)), TokenGroup(prompt, [[7, 1]], row=row)) for row, prompt in enumerate(prompts))


def test_which_rows_repeat_a_prompt() -> None:
    train = rows_of([2, 3], [4], [5, 6])
    assert overlap(train, rows_of([3, 2], [5, 6], [2], [5, 6], [2, 3])) == [1, 3, 4]
    assert overlap(train, rows_of([3, 2], [9, 9, 9])) == []
    # What stands for no prompt at all is every row's.
    assert overlap(train, rows_of([4])) == []


def test_prompts_that_meet_by_their_hash_alone_do_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(TokenGroups, "prompt_keys", property(lambda groups: np.zeros(len(groups), dtype=np.uint32)))
    assert overlap(rows_of([2, 3]), rows_of([3, 2], [2, 3])) == [1]


@pytest.mark.parametrize("streaming", [False, True])
def test_a_fit_says_that_validation_repeats_training(
    write_jsonl: Callable[..., str],
    word_tokenizer: Callable[..., PreTrainedTokenizerFast],
    tmp_path: Path,
    streaming: bool,
) -> None:
    def row(prompt: str) -> dict[str, str]:
        return {"prompt": prompt, "chosen": " a", "rejected": " b"}

    train = write_jsonl([row("a b c"), row("d e")])
    val = write_jsonl([row("f g h"), row("d e")], "val.jsonl")
    word_tokenizer().save_pretrained(tmp_path / "tokenizer")
    data = PreferenceData(train, val=val, tokenizer=str(tmp_path / "tokenizer"), batch_size=2, streaming=streaming)
    with pytest.warns(UserWarning, match=r"1 of 2 rows of data\.val have a prompt of data\.train.*the first is 'd e"):
        data.setup("fit")
