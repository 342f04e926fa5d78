from __future__ import annotations

import pytest

from lit_align.data import LabelData, PreferenceData, PromptData, RankingData, SFTData
from lit_align.data.embedded import embedded_groups, embedded_prompts, is_embedded
from lit_align.data.mini_assistant import SPLITS
from lit_align.errors import UserError


@pytest.mark.parametrize(
    ("name", "is_one"),
    [("mini_instruct", True), ("mini_assistant:seed", True), ("mini_assist", False), ("./mini_instruct", False)],
)
def test_names(name: str, is_one: bool) -> None:
    assert is_embedded(name) is is_one


def test_prompts_are_repeated_in_order() -> None:
    rows = list(embedded_prompts("mini_instruct", 10, "train"))
    assert rows[0].prompt == rows[8].prompt == "tell me about cats"
    assert rows[8].source == "mini_instruct, row 9"
    assert len(list(embedded_prompts("mini_instruct", None, "val"))) == 1000
    assert [row.prompt for row in embedded_prompts("mini_assistant:seed", 96, "val")] == list(SPLITS["seed"])
    assert [row.prompt for row in embedded_prompts("mini_assistant", 192, "val")] == list(SPLITS["heldout"])


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("mini_instruct:seed", "mini_instruct has one set of prompts: leave out the :seed"),
        ("mini_assistant@small:seed", "mini_assistant has no configurations: leave out the @small"),
        ("mini_assistant:test", "no prompts 'test'; ask for seed, train, heldout"),
    ],
)
def test_refused_names(name: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        embedded_groups(name, "sft", 1, 0, "train")
    with pytest.raises(UserError, match=message):
        list(embedded_prompts(name, 1, "train"))


@pytest.mark.parametrize("kind", [SFTData, PreferenceData, RankingData, LabelData, PromptData])
def test_data_modules_read_a_part(kind: type) -> None:
    data = kind("mini_assistant:seed", val="mini_assistant", max_rows=20, batch_size=5, tokenizer="mini_assistant")
    data.setup("fit")
    batch = next(iter(data.train_dataloader()))
    tokenizer = data._find_tokenizer()
    prompts = {tokenizer.decode(row.prompt) for row in data._encoded["train"]}
    assert prompts <= set(SPLITS["seed"])
    assert {tokenizer.decode(row.prompt) for row in data._encoded["val"]} <= set(SPLITS["heldout"])
    assert len(batch) == 5 if kind is PromptData else batch.n_groups == 5


def test_columns_have_no_effect_on_embedded_tasks() -> None:
    with pytest.raises(UserError, match="columns has no effect on mini_assistant:seed"):
        PreferenceData("mini_assistant:seed", val="mini_instruct", columns={"prompt": "question"})
