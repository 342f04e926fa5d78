"""Batches by tokens: nothing lost, ranks alike, and the same steps on any number of ranks."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import Trainer

from lit_align.data import GroupLoader, PreferenceData, padded, shared
from lit_align.data.budget import TokenBudget
from lit_align.data.token_groups import TokenGroups
from lit_align.errors import UserError
from lit_align.groups import Group, TokenGroup
from lit_align.methods import DPO
from lit_align.models import ModelConfig

layouts = pytest.mark.parametrize("layout", [padded, shared])
worlds = pytest.mark.parametrize("world", [1, 2, 3])


def ragged(n: int, seed: int = 0) -> TokenGroups:
    """Groups of 1 to 4 responses whose lengths differ up to fortyfold."""
    random = np.random.default_rng(seed)

    def tokens() -> list[int]:
        return [7] * int(np.clip(random.lognormal(2, 0.8), 1, 40))

    return TokenGroups(
        (Group("", (), source=f"row {row + 1}"), TokenGroup(tokens(), [tokens() for _ in range(random.integers(1, 5))]))
        for row in range(n)
    )


def of_rank(
    groups: TokenGroups, tokens: int, layout: Any = padded, rank: int = 0, world: int = 1, **options: Any
) -> Any:
    """The loader of one rank."""
    budget = TokenBudget(groups, tokens, world, padded=layout is padded)
    collate = partial(layout, pad_id=0)
    return GroupLoader(
        groups, 1, collate, **{"shuffle": True, "rank": rank, "world": world, "budget": budget, **options}
    )


def rows_of(batch: Any) -> list[int]:
    return [] if batch.is_filler else batch.rows.tolist()


def tokens_by_hand(groups: TokenGroups, rows: list[int], layout: Any) -> int:
    """Padded: the very size of the model's input. Shared: prompts once, and responses, without what fills the rows up."""
    held = [groups[row] for row in rows]
    if layout is padded:
        return padded(held, pad_id=0).model_inputs["input_ids"].numel() if held else 0
    return sum(len(group.prompt) + sum(map(len, group.responses)) for group in held)


@layouts
@worlds
@pytest.mark.parametrize("n", [1, 2, 5, 60])
def test_every_row_once_an_epoch_in_equally_many_batches(layout: Any, world: int, n: int) -> None:
    groups = ragged(n)
    loaders = [of_rank(groups, 400, layout, rank, world) for rank in range(world)]
    for _ in range(5):
        ranks = [list(loader) for loader in loaders]
        assert {len(batches) for batches in ranks} == {len(loaders[0])}
        assert sorted(row for batches in ranks for batch in batches for row in rows_of(batch)) == list(range(n))
        assert all(batch.n_groups for batches in ranks for batch in batches)  # a filler can be run
        together = [[row for batch in step for row in rows_of(batch)] for step in zip(*ranks, strict=True)]
        assert all(together)
        for step in zip(*ranks, strict=True):
            assert [batch.is_filler for batch in step] == [
                rank >= sum(map(len, map(rows_of, step))) for rank in range(world)
            ]


@layouts
def test_the_first_epoch_keeps_to_the_budget_and_wastes_less_than_a_row(layout: Any) -> None:
    groups = ragged(300)
    batches = [rows_of(batch) for batch in of_rank(groups, 600, layout)]
    for rows, following in zip(batches, [*batches[1:], []], strict=True):
        assert tokens_by_hand(groups, rows, layout) <= 600
        if following:
            assert tokens_by_hand(groups, [*rows, following[0]], layout) > 600


@layouts
def test_later_epochs_exceed_it_by_little(layout: Any) -> None:
    groups = ragged(1000)
    loader = of_rank(groups, 600, layout)
    for _ in range(4):
        assert max(tokens_by_hand(groups, rows_of(batch), layout) for batch in loader) <= 600 * 1.05


@layouts
def test_two_ranks_see_what_one_with_twice_the_budget_sees(layout: Any) -> None:
    groups = ragged(80)
    one = of_rank(groups, 800, layout)
    two = [of_rank(groups, 400, layout, rank, 2) for rank in range(2)]
    for _ in range(3):
        together = [sorted(rows_of(a) + rows_of(b)) for a, b in zip(*two, strict=True)]
        assert together == [sorted(rows_of(batch)) for batch in one]


@layouts
def test_ranks_have_about_equally_many_tokens(layout: Any) -> None:
    groups = ragged(2000)
    ranks = [of_rank(groups, 2000, layout, rank, 4) for rank in range(4)]
    sizes = np.array([[tokens_by_hand(groups, rows_of(batch), layout) for batch in loader] for loader in ranks])
    balance = (sizes.max(axis=0) / sizes.mean(axis=0))[:-1]  # the last batch of an epoch is what is left
    assert balance.mean() < (1.15 if layout is padded else 1.02)
    assert sizes.max() <= 2000 + 5 * 40 * 2


def test_the_longest_goes_first_to_the_rank_that_then_has_least() -> None:
    # One response a prompt; together with the prompt 10, 9, 6, 5 and 2 tokens.
    lengths = [5, 10, 2, 9, 6]
    groups = TokenGroups((Group("", ()), TokenGroup([1], [[2] * (length - 1)])) for length in lengths)
    rows = np.arange(5)
    # Sums: 10 | 9, then 6 beside 9, 5 beside 10, and 2 where there are 15 on both, so on rank 0.
    plain = TokenBudget(groups, 100, 2, padded=False)
    assert [plain.share(rows, rank).tolist() for rank in range(2)] == [[0, 1, 2], [3, 4]]
    # Rows times longest: 10 | 9; 6 makes 20 or 18; 5 makes 20 or 27; 2 makes 30 or 27.
    wide = TokenBudget(groups, 100, 2, padded=True)
    assert [wide.share(rows, rank).tolist() for rank in range(2)] == [[0, 1], [2, 3, 4]]
    assert (plain.size([0, 1, 2]), wide.size([0, 1, 2]), wide.size([])) == (17, 30, 0)


def test_batches_of_a_later_epoch_are_merged_or_halved_to_be_as_many() -> None:
    groups = TokenGroups((Group("", ()), TokenGroup([1], [[2] * 9])) for _ in range(6))
    budget = TokenBudget(groups, 20, 1, padded=False)
    as_rows = lambda number: [rows.tolist() for rows in budget.batches(np.arange(6), number)]  # noqa: E731
    assert as_rows(None) == [[0, 1], [2, 3], [4, 5]]
    assert as_rows(2) == [[0, 1, 2], [3, 4, 5]]
    assert as_rows(5) == [[0], [1], [2], [3], [4, 5]]


@worlds
def test_going_on_from_every_batch_of_two_epochs(world: int) -> None:
    groups = ragged(30)
    make = partial(of_rank, groups, 300, rank=world - 1, world=world)
    loader = make()
    positions, stream = [loader.position()], []
    for _ in range(3):
        for batch in loader:
            stream.append(rows_of(batch))
            positions.append(loader.position())
    for served, position in enumerate(positions[: 2 * len(loader) + 1]):
        resumed = make()
        resumed.set_position(position)
        assert [rows_of(batch) for batch in resumed] == stream[served : served + len(loader)]
    assert loader.identity() == make().identity()
    assert of_rank(groups, 301).identity() != of_rank(groups, 300).identity() != of_rank(groups, 300, shared).identity()
    assert "as many as have 300 tokens with padding" in of_rank(groups, 300).identity().values()
    assert of_rank(groups, 300, rank=0, world=2).identity() == of_rank(groups, 600).identity()


def test_the_gradient_of_two_ranks_is_that_of_one() -> None:
    # As the methods reduce: sums over a batch, divided by the count of all ranks.
    groups = ragged(40)
    weight = torch.linspace(-1, 1, 3, dtype=torch.float64, requires_grad=True)

    def summed(batch: Any) -> tuple[torch.Tensor, int]:
        if batch.is_filler:
            return weight.sum() * 0, 0
        scaled = batch.response_index.bincount().double()[:, None] * weight
        return scaled.sin().sum(), len(scaled)

    one = list(of_rank(groups, 600))
    two = [list(of_rank(groups, 300, rank=rank, world=2)) for rank in range(2)]
    for whole, *parts in zip(one, *two, strict=True):
        loss, count = summed(whole)
        (expected,) = torch.autograd.grad(loss / count, weight)
        sums = [summed(part) for part in parts]
        (found,) = torch.autograd.grad(sum(loss for loss, _ in sums) / sum(count for _, count in sums), weight)
        assert torch.allclose(found, expected, rtol=1e-12)


def test_what_does_not_go_together_is_refused() -> None:
    groups = ragged(20)
    with pytest.raises(UserError, match=r"row \d+ alone has .* tokens_per_batch is 10: raise it"):
        TokenBudget(groups, 10, 1, padded=True)
    for given, message in (
        ({"batch_size": 8}, "batch_size has no effect beside tokens_per_batch"),
        ({"streaming": True}, "How long streamed rows are is not known"),
    ):
        with pytest.raises(UserError, match=message):
            PreferenceData("rows.jsonl", tokens_per_batch=100, **given)
    with pytest.raises(UserError, match="tokens_per_batch must be at least 1, got 0"):
        PreferenceData("rows.jsonl", tokens_per_batch=0)


@pytest.mark.parametrize(("given", "batches"), [({}, 2), ({"val_batch_size": 1}, 4)])
def test_validation_keeps_to_it_unless_it_has_a_size_of_its_own(
    given: dict[str, int], batches: int, write_jsonl
) -> None:
    rows = [{"prompt": "tell me", "chosen": "cats", "rejected": "dogs"}] * 4
    data = PreferenceData(
        write_jsonl(rows), val=write_jsonl(rows, "val.jsonl"), tokens_per_batch=20, tokenizer="mini_instruct", **given
    )
    with pytest.warns(UserWarning, match="have a prompt of data.train"):
        data.setup("fit")
    # tell me cats <eos>: 4 tokens, two responses padded: 8 a row, 16 for two of them.
    assert len(data.train_dataloader()) == 2
    assert len(data.val_dataloader()) == batches
    assert next(iter(data.val_dataloader())).rows.tolist() == ([0] if given else [0, 1])


def trained(rows: str, tokens: int, devices: int) -> list[torch.Tensor]:
    """The weights of a policy after two epochs of DPO."""
    torch.manual_seed(5)
    small = {"hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2, "num_key_value_heads": 2}
    module = DPO(
        policy=ModelConfig("mini_instruct", init="random", overrides=small),
        optimizer=lambda parameters: torch.optim.SGD(parameters, lr=0.1),
        lr_scheduler=lambda optimizer: torch.optim.lr_scheduler.ConstantLR(optimizer, factor=1.0),
    )
    quiet = {
        "logger": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "enable_checkpointing": False,
    }
    strategy = "ddp" if devices > 1 else "auto"
    trainer = Trainer(accelerator="cpu", devices=devices, strategy=strategy, max_epochs=2, **quiet)
    trainer.fit(module, PreferenceData(rows, tokens_per_batch=tokens))
    assert trainer.global_step > 8
    return [weights.detach().clone() for weights in module.policy.parameters()]


@pytest.mark.slow
def test_two_ranks_train_what_one_trains(on_two_ranks, tmp_path: Path) -> None:
    random = np.random.default_rng(0)

    def text() -> str:
        return " ".join(random.choice(["cats", "dogs", "are", "lovely", "and"], random.integers(1, 9)))

    rows = tmp_path / "rows.jsonl"
    made = [{"prompt": text(), "chosen": f"clever {text()}", "rejected": f"awful {text()}"} for _ in range(31)]
    rows.write_text("".join(f"{json.dumps(row)}\n" for row in made))
    one = trained(str(rows), 160, 1)
    for rank in on_two_ranks(trained, str(rows), 80, 2):
        for found, expected in zip(rank, one, strict=True):
            torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-5)
