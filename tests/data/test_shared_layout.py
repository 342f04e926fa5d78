"""The shared layout, against a batch laid out by hand, a walk through every tree, and the padded layout."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer
from torch import Tensor

from lit_align.data import LabelData, PreferenceData, RankingData, SFTData
from lit_align.data.collate import padded
from lit_align.data.shared_layout import pack, shared
from lit_align.errors import UserError
from lit_align.groups import GroupBatch, TokenGroup
from lit_align.methods import DPO, KTO, SFT, RewardModel
from lit_align.models import ModelConfig

MINI = ModelConfig(path="mini_instruct", init="random").tokenizer_location
GROUPS = [
    TokenGroup([5, 6], [[7, 1], [8, 9, 1]], scores=[1.0, 0.0], margin=0.5, row=3),
    TokenGroup([2], [[1]], scores=[2.0], row=8),
    TokenGroup([3, 4], [[1]], scores=[1.0], row=9),
]


def test_by_hand() -> None:
    batch = shared(GROUPS, pad_id=0, tokens_per_row=7)
    # The longest first; of the two rows, the second is then the shorter one for both others.
    assert batch.model_inputs["input_ids"].tolist() == [[5, 6, 7, 1, 8, 9, 1], [3, 4, 1, 2, 1, 0, 0]]
    assert batch.model_inputs["position_ids"].tolist() == [[0, 1, 2, 3, 2, 3, 4], [0, 1, 2, 0, 1, 0, 0]]
    assert batch.model_inputs["visible_until"].tolist() == [[7, 7, 4, 4, 7, 7, 7], [3, 3, 3, 5, 5, 6, 7]]
    assert batch.predict_index.tolist() == [1, 2, 1, 4, 5, 10, 8]
    assert batch.targets.tolist() == [7, 1, 8, 9, 1, 1, 1]
    assert batch.response_index.tolist() == [0, 0, 1, 1, 1, 2, 3]
    assert batch.last_index.tolist() == [3, 6, 11, 9]
    assert batch.group_index.tolist() == [0, 0, 1, 2]
    assert batch.rows.tolist() == [3, 8, 9]


@pytest.mark.parametrize("tokens_per_row", [1, 25, 60, 1000])
def test_every_token_sees_its_own_path_and_nothing_else(
    random_groups: Callable[..., list[TokenGroup]], tokens_per_row: int
) -> None:
    groups = random_groups([3, 1, 2, 5, 1, 2])
    batch = shared(groups, 0, tokens_per_row)
    width = batch.model_inputs["input_ids"].shape[1]
    ids, positions, until = (batch.model_inputs[name] for name in ("input_ids", "position_ids", "visible_until"))
    paths = [([*group.prompt, *response], len(response)) for group in groups for response in group.responses]
    for n, (path, length) in enumerate(paths):
        row, last = divmod(int(batch.last_index[n]), width)
        seen = [column for column in range(last + 1) if until[row, column] > last]
        assert ids[row, seen].tolist() == path
        assert positions[row, seen].tolist() == list(range(len(path)))
        at = batch.response_index == n
        assert (batch.predict_index[at] - row * width).tolist() == seen[-length - 1 : -1]
        assert batch.targets[at].tolist() == path[-length:]
    tokens = sum(len(group.prompt) + sum(map(len, group.responses)) for group in groups)
    assert width <= max(tokens_per_row, *(len(g.prompt) + sum(map(len, g.responses)) for g in groups))
    padding = until == torch.arange(1, width + 1)  # or the last token of a segment
    assert int((ids[padding] == 0).sum()) == ids.numel() - tokens


def test_flat_tensors_are_those_of_padded(random_groups: Callable[..., list[TokenGroup]]) -> None:
    groups = random_groups([2, 1, 4, 3])
    one, other = shared(groups, 0, 30), padded(groups, 0)
    for name in ("targets", "response_index", "group_index", "margins", "rows", "scores"):
        torch.testing.assert_close(getattr(one, name), getattr(other, name), atol=0, rtol=0)
    assert one.labels is None


def test_scores_of_some_groups_only_are_refused() -> None:
    with pytest.raises(ValueError, match="Some groups of the batch have scores"):
        shared([GROUPS[0], TokenGroup([1], [[2]])], 0)


@pytest.mark.parametrize("seed", range(20))
def test_rows_hold_what_they_can(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    sizes = torch.randint(1, 60, (1 + seed * 3,), generator=generator).tolist()
    budget = int(torch.randint(20, 200, (), generator=generator))
    rows, columns = pack(sizes, budget)
    limit = max(budget, *sizes)
    spans: dict[int, list[tuple[int, int]]] = {}
    for size, row, column in zip(sizes, rows, columns, strict=True):
        spans.setdefault(row, []).append((column, column + size))
    assert sorted(spans) == list(range(len(spans)))
    for of_row in spans.values():
        ends = [0, *(end for _, end in sorted(of_row))]
        assert [start for start, _ in sorted(of_row)] == ends[:-1]  # one behind the other, without a gap
        assert ends[-1] <= limit
    # Any list in which each group fits a row of the limit needs fewer than 2 * total / limit + 1 rows.
    assert len(spans) <= 2 * sum(sizes) / limit + 1


def test_rows_are_about_equally_long() -> None:
    rows, _ = pack([30, 30, 10, 10, 10, 10], 64)
    assert [
        sum(size for size, at in zip([30, 30, 10, 10, 10, 10], rows, strict=True) if at == row) for row in (0, 1)
    ] == [
        50,
        50,
    ]


def test_a_long_group_has_a_row_and_widens_the_others() -> None:
    rows, columns = pack([5, 100, 5], 10)
    assert rows[1] not in {rows[0], rows[2]}
    assert columns[1] == 0
    assert rows[0] == rows[2]


@pytest.mark.parametrize(
    ("method", "data"),
    [(SFT, SFTData), (RewardModel, RankingData), (DPO, PreferenceData), (KTO, LabelData)],
    ids=["sft", "reward", "dpo", "kto"],
)
def test_methods_learn_the_same(method: Any, data: Any) -> None:
    def trained(**layout: Any) -> tuple[list[Tensor], dict[str, float]]:
        torch.manual_seed(0)
        module = method(
            policy=ModelConfig(path="mini_instruct", init="random"),
            optimizer=lambda parameters: torch.optim.SGD(parameters, lr=0.1),
            lr_scheduler=lambda optimizer: torch.optim.lr_scheduler.ConstantLR(optimizer, factor=1.0),
        )
        trainer = Trainer(
            accelerator="cpu", max_steps=4, limit_val_batches=2, logger=False, enable_progress_bar=False,
            enable_model_summary=False, enable_checkpointing=False,
        )  # fmt: skip
        trainer.fit(module, data(train="mini_instruct", val="mini_instruct", max_rows=24, batch_size=6, **layout))
        parameters = [parameter.detach() for parameter in module.parameters()]
        return parameters, {name: float(value) for name, value in trainer.callback_metrics.items()}

    expected, metrics = trained()
    actual, shared_metrics = trained(layout="shared", tokens_per_row=40)
    for a, b in zip(actual, expected, strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)
    assert shared_metrics == pytest.approx(metrics, rel=1e-5, abs=1e-5)


def test_rows_are_as_wide_as_the_data_module_says() -> None:
    def batch(**layout: Any) -> GroupBatch:
        data = PreferenceData(
            train="mini_instruct", max_rows=16, batch_size=16, tokenizer=MINI, max_length=32, **layout
        )
        data.setup("fit")
        first: GroupBatch = next(iter(data.train_dataloader()))
        return first

    assert batch().model_inputs["input_ids"].shape[0] == 32
    assert 32 < batch(layout="shared", tokens_per_row=64).model_inputs["input_ids"].shape[1] <= 64
    assert batch(layout="shared").model_inputs["input_ids"].shape[1] <= 32


def test_settings_are_checked() -> None:
    with pytest.raises(UserError, match="no effect with layout: padded"):
        SFTData(train="mini_instruct", tokens_per_row=64)
    with pytest.raises(UserError, match="tokens_per_row must be at least 1"):
        SFTData(train="mini_instruct", layout="shared", tokens_per_row=0)
