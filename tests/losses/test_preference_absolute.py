"""The losses that look at each response, or at the batch. h_w = 1 and h_l = -3 unless said, so D = 4; beta = 0.5."""

from __future__ import annotations

import math

import pytest
import torch

from lit_align.losses import (
    AOT,
    DPO,
    AOTUnpaired,
    APODown,
    APOZero,
    BCOPair,
    NCAPair,
    PairLogps,
    PreferenceLoss,
    SPPOHard,
)


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def pairs_of(log_ratios: list[tuple[float, float]]) -> PairLogps:
    """Pairs with these h_w and h_l."""
    chosen, rejected = torch.tensor(log_ratios).T
    lengths = torch.full((len(log_ratios),), 4)
    reference = -10 - torch.arange(len(log_ratios), dtype=torch.float)
    return PairLogps(
        (chosen + reference).requires_grad_(),
        (rejected + reference - 1).requires_grad_(),
        reference,
        reference - 1,
        lengths,
        lengths,
    )


@pytest.mark.parametrize(
    ("loss", "expected"),
    [
        (
            NCAPair(beta=0.5),
            -math.log(sigmoid(0.5)) - math.log(sigmoid(-0.5)) / 2 - math.log(sigmoid(1.5)) / 2,
        ),
        (BCOPair(beta=0.5), -math.log(sigmoid(0.5)) - math.log(sigmoid(1.5))),
        (BCOPair(beta=0.5, reward_shift=True), -2 * math.log(sigmoid(1.0))),  # shift -0.5
        (SPPOHard(beta=0.5), 4.0),  # (1 - 1)^2 + (-3 + 1)^2
        (APOZero(beta=0.5), sigmoid(-0.5) + sigmoid(-1.5)),
        (APODown(beta=0.5), sigmoid(0.5) + sigmoid(-2.0)),
        (AOT(beta=0.5), -math.log(sigmoid(2.0))),
        (AOTUnpaired(beta=0.5), -math.log(sigmoid(2.0))),
    ],
    ids=lambda value: repr(value) if isinstance(value, PreferenceLoss) else "",
)
def test_by_hand(loss: PreferenceLoss, expected: float) -> None:
    torch.testing.assert_close(loss(pairs_of([(1.0, -3.0)])), torch.tensor([expected]), rtol=1e-5, atol=1e-6)


def test_apo_down_lowers_both_responses_and_the_worse_one_more() -> None:
    pairs = pairs_of([(2.0, 2.0)])
    chosen, rejected = torch.autograd.grad(APODown(beta=0.5)(pairs).sum(), (pairs.chosen, pairs.rejected))
    slope = sigmoid(1.0) * sigmoid(-1.0) / 2, 0.25 / 2  # of sigmoid(h_w / 2) and of sigmoid(D / 2)
    torch.testing.assert_close((chosen.item(), rejected.item()), (slope[0] - slope[1], slope[1]))
    low = pairs_of([(0.1, -4.0)])
    chosen, rejected = torch.autograd.grad(APODown(beta=0.5)(low).sum(), (low.chosen, low.rejected))
    assert chosen.item() > 0
    assert rejected.item() > 0


def test_nca_holds_a_likely_response_where_dpo_would_push_on() -> None:
    pairs = pairs_of([(6.0, 0.0)])
    (nca,) = torch.autograd.grad(NCAPair(beta=0.5)(pairs).sum(), pairs.chosen)
    (dpo,) = torch.autograd.grad(DPO(beta=0.5)(pairs).sum(), pairs.chosen)
    assert nca.item() > 0 > dpo.item()


def test_the_shift_of_bco_is_the_mean_reward_and_takes_no_gradient() -> None:
    pairs = pairs_of([(1.0, -3.0), (4.0, 2.0)])  # mean log-ratio 1, mean reward 0.5
    expected = torch.tensor(
        [-math.log(sigmoid(0.0)) - math.log(sigmoid(2.0)), -math.log(sigmoid(1.5)) - math.log(sigmoid(-0.5))]
    )
    values = BCOPair(beta=0.5, reward_shift=True)(pairs)
    torch.testing.assert_close(values, expected, rtol=1e-5, atol=1e-6)
    (chosen,) = torch.autograd.grad(values[0], pairs.chosen)
    torch.testing.assert_close(chosen, torch.tensor([-0.25, 0.0]))


def test_a_lone_shifted_bco_pair_is_twice_dpo_at_half_its_beta() -> None:
    pairs = pairs_of([(1.7, -0.4)])
    torch.testing.assert_close(BCOPair(beta=0.5, reward_shift=True)(pairs), 2 * DPO(beta=0.25)(pairs))


def test_aot_compares_quantiles_of_the_margins() -> None:
    # Margins log pi(w) - log pi(l): policy 5, 0, 2 against reference 1, 4, 0.
    zeros, lengths = torch.zeros(3), torch.ones(3)
    pairs = PairLogps(torch.tensor([5.0, 0, 2]), zeros, torch.tensor([1.0, 4, 0]), zeros, lengths, lengths)
    expected = torch.tensor([-math.log(sigmoid(x)) for x in (0.0, 0.5, 0.5)])  # 0 - 0, 2 - 1, 5 - 4
    torch.testing.assert_close(AOT(beta=0.5)(pairs), expected)


def test_unpaired_aot_does_not_ask_who_was_compared_with_whom() -> None:
    expected = torch.tensor([-math.log(sigmoid(x / 2)) for x in (1.0, 0.5, 2.0)])  # -1 + 2, 0.5 - 0, 3 - 1
    for log_ratios in ([(3.0, -2.0), (-1.0, 1.0), (0.5, 0.0)], [(3.0, 1.0), (-1.0, 0.0), (0.5, -2.0)]):
        values = AOTUnpaired(beta=0.5)(pairs_of(log_ratios))
        torch.testing.assert_close(values, expected, rtol=1e-5, atol=1e-5)
