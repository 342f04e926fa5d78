"""Order, shares of ranks, and going on from any batch."""

from __future__ import annotations

from functools import partial
from itertools import islice
from typing import Any

import pytest
import torch

from lit_align.data.collate import padded
from lit_align.data.loader import GroupLoader
from lit_align.data.token_groups import TokenGroups
from lit_align.groups import Group, TokenGroup

# Python warns of any fork beside other threads, and torch keeps some.
workers = pytest.mark.parametrize(
    "num_workers",
    [
        0,
        pytest.param(
            2, marks=pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
        ),
    ],
)


def _rows(n: int) -> TokenGroups:
    return TokenGroups((Group("", ()), TokenGroup([row], [[row, 1]], row=row)) for row in range(n))


def _loader(n: int, batch_size: int, **options: Any) -> GroupLoader:
    return GroupLoader(_rows(n), batch_size, partial(padded, pad_id=0), **{"shuffle": True, "seed": 5, **options})


def _seen(batches: Any) -> list[list[int]]:
    return [[] if batch.is_filler else batch.rows.tolist() for batch in batches]


@pytest.mark.parametrize("world", [1, 2, 3])
@pytest.mark.parametrize("n", [1, 2, 7, 12, 13, 17])
@pytest.mark.parametrize("shuffle", [True, False])
def test_every_row_once_on_any_number_of_ranks(world: int, n: int, shuffle: bool) -> None:
    loaders = [_loader(n, 3, rank=rank, world=world, shuffle=shuffle) for rank in range(world)]
    for _ in range(2):
        ranks = [list(loader) for loader in loaders]
        assert {len(batches) for batches in ranks} == {len(loaders[0])} == {-(-n // (3 * world))}
        assert sorted(row for batches in ranks for rows in _seen(batches) for row in rows) == list(range(n))
        sizes = [len(rows[-1]) for rows in map(_seen, ranks)]
        assert max(sizes) - min(sizes) <= 1
        # A filler is a batch like any other, so that a rank can run it.
        assert all(batch.n_groups >= 1 for batches in ranks for batch in batches)
        assert [batches[-1].is_filler for batches in ranks] == [size == 0 for size in sizes]


@pytest.mark.parametrize("n", [8, 9, 11, 13])
def test_two_ranks_see_what_one_with_twice_the_batch_sees(n: int) -> None:
    one = _loader(n, 4)
    two = [_loader(n, 2, rank=rank, world=2) for rank in range(2)]
    for _ in range(3):
        together = [a + b for a, b in zip(*(_seen(loader) for loader in two), strict=True)]
        assert together == _seen(one)


def test_the_order_is_a_function_of_seed_and_epoch() -> None:
    loader = _loader(20, 4)
    first, second = _seen(loader), _seen(loader)
    assert first != second
    torch.manual_seed(99)
    again = _loader(20, 4)
    assert [_seen(again), _seen(again)] == [first, second]
    assert _seen(_loader(20, 4, seed=6)) != first


@workers
def test_the_global_generator_is_left_alone(num_workers: int) -> None:
    before = torch.get_rng_state()
    list(_loader(9, 2, num_workers=num_workers))
    assert torch.equal(torch.get_rng_state(), before)


@workers
@pytest.mark.parametrize("world", [1, 2])
def test_going_on_from_every_batch_of_three_epochs(num_workers: int, world: int) -> None:
    options = {"num_workers": num_workers, "rank": world - 1, "world": world}
    loader = _loader(7, 2, **options)
    positions, stream = [loader.position()], []
    for _ in range(4):
        for batch in loader:
            stream += _seen([batch])
            positions.append(loader.position())
    per_epoch = len(loader)
    for served, position in enumerate(positions[: 3 * per_epoch + 1]):
        assert position == {"epoch": served // per_epoch, "batch": served % per_epoch}
        resumed = _loader(7, 2, **options)
        resumed.set_position(position)
        assert resumed.position() == position
        assert _seen(resumed) == stream[served : served + per_epoch]


def test_a_position_past_the_end_of_an_epoch_starts_the_next() -> None:
    loader = _loader(7, 2)
    epochs = [_seen(loader) for _ in range(3)]
    for batch in (4, 5, 100):
        loader.set_position({"epoch": 1, "batch": batch})
        assert _seen(loader) == epochs[2]


def test_epochs_that_are_cut_short_go_on_where_they_stopped() -> None:
    whole = _loader(10, 2)
    stream = _seen(whole) + _seen(whole)
    loader = _loader(10, 2)
    assert [_seen(islice(loader, 3)) for _ in range(3)] == [stream[0:3], stream[3:6], stream[6:9]]


def test_asking_for_an_iterator_takes_no_batch() -> None:
    loader = _loader(6, 2)
    iter(loader)
    assert loader.position() == {"epoch": 0, "batch": 0}
    batches = iter(loader)
    next(batches)
    iter(loader)
    assert loader.position() == {"epoch": 0, "batch": 1}


def test_in_order_every_pass_begins_with_the_first_row() -> None:
    loader = _loader(5, 2, shuffle=False)
    next(iter(loader))
    assert _seen(loader) == [[0, 1], [2, 3], [4]]
    assert _seen(loader) == [[0, 1], [2, 3], [4]]


def test_lightning_leaves_it_alone() -> None:
    loader = _loader(5, 2)
    assert not isinstance(loader, torch.utils.data.DataLoader)
    assert not hasattr(loader, "state_dict")


@pytest.mark.parametrize(("n", "options"), [(0, {}), (3, {"rank": 2, "world": 2})])
def test_impossible_loaders_are_refused(n: int, options: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=f"{n} groups in batches of 2"):
        _loader(n, 2, **options)
