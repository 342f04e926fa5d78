"""How many rows and tokens each method computes at once, counted by hand."""

from __future__ import annotations

from typing import Any

import pytest

from lit_align.plan.sizes import Sizes, sizes


def sizes_of(method: str, data_class: str, args: dict[str, Any], data: dict[str, Any], device: str = "gpu") -> Sizes:
    config = {
        "trainer": {"accelerator": device},
        "model": {"init_args": args},
        "data": {"class_path": f"lit_align.data.{data_class}", "init_args": data},
    }
    return sizes(method, config, [])


ROLLOUT = {"rollout": {"max_new_tokens": 7, "max_rows": 9}, "responses_per_prompt": 2}
PROMPTS = {"batch_size": 6, "max_prompt_length": 5}


@pytest.mark.parametrize(
    ("data_class", "rows"), [("SFTData", 3), ("LabelData", 3), ("PreferenceData", 6), ("RankingData", 12)]
)
def test_rows_that_bring_responses(data_class: str, rows: int):
    found = sizes_of("DPO", data_class, {}, {"batch_size": 3, "max_length": 50})
    assert found == Sizes(rows, 50)


def test_a_budget_of_tokens_is_divided_by_the_longest_rows():
    data = {"batch_size": None, "max_length": 50, "tokens_per_batch": 470}
    # A prompt has two rows of 50 tokens, so that four prompts go into 470.
    assert sizes_of("DPO", "PreferenceData", {}, data) == Sizes(8, 50)
    assert sizes_of("SFT", "SFTData", {}, data | {"tokens_per_batch": None}) == Sizes(8, 50)
    assert sizes_of("SFT", "SFTData", {}, data) == Sizes(9, 50)


def test_a_number_of_responses_that_is_assumed_is_said():
    remarks: list[str] = []
    config = {
        "trainer": {"accelerator": "gpu"},
        "model": {"init_args": {}},
        "data": {"class_path": "RankingData", "init_args": {"batch_size": 1, "max_length": 8}},
    }
    sizes("RRHF", config, remarks)
    assert remarks == ["Each prompt of RankingData is taken to have 4 responses."]


def test_ppo_trains_on_minibatches_of_what_it_samples():
    found = sizes_of("PPO", "PromptData", ROLLOUT | {"minibatches": 4, "ptx": None}, PROMPTS)
    # Six prompts in four minibatches, so at most two in one; nine rows hold the responses to four prompts.
    assert found == Sizes(rows=4, columns=12, targets=7, sampled_rows=8, sampled_columns=12)
    text = {"data": {"class_path": "SFTData", "init_args": {"batch_size": 3, "max_length": 20}}}
    assert sizes_of("PPO", "PromptData", ROLLOUT | {"minibatches": 4, "ptx": text}, PROMPTS).text == 60


def test_what_is_trained_on_besides_may_have_a_budget_of_tokens():
    budget = {"batch_size": None, "max_length": 20, "tokens_per_batch": 170}
    text = {"data": {"class_path": "SFTData", "init_args": budget}}
    # Eight rows of 20 tokens go into 170, or four pairs.
    assert sizes_of("PPO", "PromptData", ROLLOUT | {"minibatches": 4, "ptx": text}, PROMPTS).text == 160
    seed = {"data": {"class_path": "PreferenceData", "init_args": budget}}
    found = sizes_of("SPA", "PromptData", {"rollout": ROLLOUT["rollout"], "seed": seed}, PROMPTS)
    assert (found.rows, found.columns) == (8, 20)


def test_online_dpo_trains_on_two_responses_or_on_all():
    args = ROLLOUT | {"responses_per_prompt": 3, "pairs": "extremes"}
    found = sizes_of("OnlineDPO", "PromptData", args, PROMPTS)
    assert (found.rows, found.sampled_rows) == (12, 9)
    assert sizes_of("OnlineDPO", "PromptData", args | {"pairs": "all"}, PROMPTS).rows == 18


def test_rrhf_ranks_the_responses_of_its_samplers_too():
    found = sizes_of("RRHF", "PromptData", {"candidates": ROLLOUT | {"samplers": [{"path": "a"}]}}, PROMPTS)
    assert (found.rows, found.sampled_rows) == (6 * 2 * 2, 8)


def test_spa_is_as_large_as_its_larger_stage():
    seed = {"data": {"class_path": "PreferenceData", "init_args": {"batch_size": 5, "max_length": 30}}}
    spa = {"rollout": ROLLOUT["rollout"]}
    found = sizes_of("SPA", "PromptData", spa | {"seed": None}, PROMPTS)
    assert (found.rows, found.columns, found.targets) == (12, 12, 7)
    found = sizes_of("SPA", "PromptData", spa | {"seed": seed}, PROMPTS)
    assert (found.rows, found.columns, found.targets) == (10, 30, None)


def test_masks_of_the_shared_layout():
    data = {"batch_size": 3, "max_length": 10, "layout": "shared", "tokens_per_row": None}
    # On the CPU one for each response; elsewhere for each row, of two responses that are as long as may be.
    assert sizes_of("DPO", "PreferenceData", {}, data, "cpu").mask == 6 * 10**2
    assert sizes_of("DPO", "PreferenceData", {}, data).mask == 3 * 20**2
    assert sizes_of("DPO", "PreferenceData", {}, data | {"tokens_per_row": 40}).mask == 2 * 40**2
    assert sizes_of("DPO", "PreferenceData", {}, data | {"layout": "padded"}).mask == 0
