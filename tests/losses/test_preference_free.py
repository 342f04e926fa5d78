"""The losses without a reference. log pi(w) = -4 over 4 tokens, log pi(l) = -9 over 6: -1 and -1.5 a token."""

from __future__ import annotations

import math

import pytest
import torch

from lit_align.errors import UserError
from lit_align.losses import CPO, ORPO, PairLogps, SimPO


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def worked_pair(chosen: float = -4.0, rejected: float = -9.0) -> PairLogps:
    return PairLogps(
        chosen=torch.tensor([chosen], requires_grad=True),
        rejected=torch.tensor([rejected], requires_grad=True),
        ref_chosen=None,
        ref_rejected=None,
        chosen_length=torch.tensor([4]),
        rejected_length=torch.tensor([6]),
    )


def test_simpo_by_hand() -> None:
    loss = SimPO(beta=2.0, gamma=0.5)(worked_pair())  # logit 2 (-1 + 1.5) - 0.5
    torch.testing.assert_close(loss, torch.tensor([-math.log(sigmoid(0.5))]))


def test_cpo_by_hand() -> None:
    loss = CPO(beta=0.2, nll_weight=3.0)(worked_pair())  # logit 0.2 (-4 + 9), NLL 1
    torch.testing.assert_close(loss, torch.tensor([-math.log(sigmoid(1.0)) + 3.0]))


def test_orpo_by_hand() -> None:
    def log_odds(mean: float) -> float:
        return math.log(math.exp(mean) / (1 - math.exp(mean)))

    expected = 1.0 - 0.25 * math.log(sigmoid(log_odds(-1.0) - log_odds(-1.5)))
    torch.testing.assert_close(ORPO(beta=0.25)(worked_pair()), torch.tensor([expected]))


def test_simpo_does_not_reward_length() -> None:
    """Twice the tokens at the same log-probability a token: the same loss."""
    twice = PairLogps(*(None if field is None else field * 2 for field in worked_pair()))  # type: ignore[arg-type]
    torch.testing.assert_close(SimPO()(twice), SimPO()(worked_pair()))


def test_gamma_asks_for_more_than_winning() -> None:
    assert SimPO(gamma=1.0)(worked_pair()).item() > SimPO(gamma=0.0)(worked_pair()).item()


@pytest.mark.parametrize(("chosen", "rejected"), [(0.0, -9.0), (-4.0, 0.0), (0.0, 0.0)])
def test_orpo_stays_finite_where_the_policy_is_certain(chosen: float, rejected: float) -> None:
    pairs = worked_pair(chosen, rejected)
    value = ORPO()(pairs)
    assert value.isfinite().all()
    for gradient in torch.autograd.grad(value.sum(), (pairs.chosen, pairs.rejected)):
        assert gradient.isfinite().all()


@pytest.mark.parametrize("mean", [-1e-4, -1e-2, -0.5, -20.0])
def test_log_odds_keep_their_digits(mean: float) -> None:
    """Against float64 at both ends: 1 - exp(x) loses its digits where x is near 0."""
    pairs = PairLogps(torch.tensor([mean]), torch.tensor([-1.0]), None, None, torch.tensor([1]), torch.tensor([1]))
    x = float(pairs.chosen)
    odds = [v - math.log(-math.expm1(v)) for v in (x, -1.0)]
    expected = -x + math.log1p(math.exp(-(odds[0] - odds[1]))) * 2.0
    torch.testing.assert_close(ORPO(beta=2.0)(pairs), torch.tensor([expected]), rtol=1e-5, atol=1e-7)


def test_negative_weights_are_refused() -> None:
    with pytest.raises(UserError, match="gamma must be 0 or a positive number"):
        SimPO(gamma=-0.1)
    with pytest.raises(UserError, match="nll_weight must be 0 or a positive number"):
        CPO(nll_weight=math.nan)
