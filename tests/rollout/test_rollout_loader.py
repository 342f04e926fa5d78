"""The loader that turns prompts into rollouts and rollouts into batches."""

from __future__ import annotations

import io
from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest
import torch

from lit_align.data import padded
from lit_align.groups import TokenGroup
from lit_align.rollout.loader import Rollout, RolloutBatch, RolloutLoader

COLLATE = partial(padded, pad_id=0)


class Numbers:
    """Seven batches of two prompts, endless, with a position."""

    def __init__(self) -> None:
        self.served = 0

    def __len__(self) -> int:
        return 7

    def __iter__(self) -> Iterator[list[int]]:
        for _ in range(7):
            self.served += 1
            yield [self.served * 2 - 2, self.served * 2 - 1]

    def position(self) -> dict[str, Any]:
        return {"served": self.served}

    def set_position(self, position: dict[str, Any]) -> None:
        self.served = position["served"]


def collect(batches: list[list[int]]) -> Rollout:
    """Two responses a prompt, whose first tokens name the prompt; the number of tokens differs from prompt to prompt."""
    prompts = [prompt for batch in batches for prompt in batch]
    groups = [TokenGroup([p + 1], [[p + 1] * (p % 3 + 1), [p + 1]], scores=[1.0, 0.0], row=p) for p in prompts]
    tokens = torch.cat([torch.full((p % 3 + 2,), float(p)) for p in prompts])
    responses = torch.tensor([[p + 0.25, p + 0.5] for p in prompts]).flatten()
    return Rollout(groups, COLLATE, tokens={"x": tokens}, responses={"y": responses})


def loader(**settings: Any) -> RolloutLoader:
    return RolloutLoader(Numbers(), collect, COLLATE, **settings)


def rows(batch: RolloutBatch) -> list[int]:
    return [] if batch.is_filler else batch.batch.rows.tolist()


@pytest.mark.parametrize(
    ("rounds", "expected"),
    [
        ((1,), [2, 2, 2, 2, 2, 2, 2]),
        ((3,), [6, 6, 6, 6, 6, 6, 2]),
        ((1, 2, 4), [2, 4, 4, 8, 8, 8, 8]),
        ((100,), [14] * 7),
    ],
)
def test_rounds_join_batches_of_prompts(rounds: tuple[int, ...], expected: list[int]) -> None:
    served = loader(rounds=rounds)
    torch.manual_seed(0)
    sizes, seen = [], []
    for batch in served:
        assert served._rollout is not None
        sizes.append(len(served._rollout.groups))
        seen += rows(batch)
    assert len(sizes) == len(served) == 7
    assert sizes == expected
    assert sorted(seen) == list(range(14)), "each prompt once"


def test_a_second_epoch_goes_through_the_same_rounds() -> None:
    served = loader(rounds=(1, 2))
    torch.manual_seed(0)
    sizes = []
    for _ in range(2):
        for _batch in served:
            assert served._rollout is not None
            sizes.append(len(served._rollout.groups))
    assert sizes == [2, 4, 4, 4, 4, 4, 4] * 2


def test_inner_epochs_and_minibatches_multiply() -> None:
    served = loader(rounds=(2,), inner_epochs=3, minibatches=2)
    assert len(served) == 7 * 3 * 2
    seen = [row for batch in served for row in rows(batch)]
    assert sorted(seen) == sorted(list(range(14)) * 3)


def test_values_stay_with_their_responses_and_tokens() -> None:
    for batch in loader(rounds=(4,)):
        of_response = batch.batch.rows[batch.batch.group_index]
        offset = torch.tensor([0.25, 0.5]).repeat(batch.batch.n_groups)
        assert torch.equal(batch.responses["y"], of_response + offset)
        assert torch.equal(batch.tokens["x"], of_response[batch.batch.response_index].float())
        assert batch.batch.scores is not None
        assert batch.batch.scores.tolist() == [1.0, 0.0] * batch.batch.n_groups


@pytest.mark.parametrize("stop", range(8))
def test_it_goes_on_from_any_batch(stop: int) -> None:
    """Through a file that holds nothing but tensors and plain values."""

    def trace(served: RolloutLoader, n: int | None = None) -> list[tuple[list[int], list[float]]]:
        out = []
        for number, batch in enumerate(served, start=1):
            out.append((rows(batch), batch.responses["y"].tolist()))
            if number == n:
                break
        return out

    torch.manual_seed(3)
    whole = trace(loader(rounds=(2, 5)))
    torch.manual_seed(3)
    first = loader(rounds=(2, 5))
    begun = trace(first, stop) if stop else []
    file = io.BytesIO()
    torch.save({"position": first.position(), "random": torch.get_rng_state()}, file)
    file.seek(0)
    state = torch.load(file, weights_only=True)
    second = loader(rounds=(2, 5))
    second.set_position(state["position"])
    torch.manual_seed(99)
    torch.set_rng_state(state["random"])
    rest = trace(second) if stop < 7 else []
    assert begun + rest == whole


def test_without_scores_a_rollout_comes_back_without() -> None:
    groups = [TokenGroup([1, 2], [[3], [4, 5]], row=4), TokenGroup([6], [[7]], row=2)]
    back = Rollout.from_state(Rollout(groups, COLLATE, is_filler=True).state(), COLLATE)
    assert back.groups == groups
    assert back.is_filler


def test_ranks_with_few_prompts_get_fillers() -> None:
    served = loader(rounds=(1,), minibatches=3)
    batches = [batch for batch, _ in zip(served, range(3), strict=False)]
    assert [batch.is_filler for batch in batches] == [False, False, True]


def test_what_is_left_of_a_rollout_can_be_dropped() -> None:
    served = loader(rounds=(3,))
    seen = []
    for number, batch in enumerate(served):
        seen += rows(batch)
        if number == 0:
            served.stop_update()
    assert len(seen) < 14
    assert len(set(seen)) == len(seen)
