"""Temperature, top-k and top-p by hand."""

import pytest
import torch

from lit_align.errors import UserError
from lit_align.models import Sampling

PROBS = torch.tensor([0.5, 0.25, 0.15, 0.1])


def drawn(sampling, keep=None):
    return sampling.warp(PROBS.log(), keep=keep).softmax(-1)


def test_the_default_is_the_models_own_distribution():
    torch.testing.assert_close(drawn(Sampling()), PROBS)


def test_temperature_raises_probabilities_to_a_power():
    squared = PROBS.square() / PROBS.square().sum()
    torch.testing.assert_close(drawn(Sampling(temperature=0.5)), squared)


@pytest.mark.parametrize(
    ("sampling", "expected"),
    [
        (Sampling(top_k=1), [1.0, 0, 0, 0]),
        (Sampling(top_k=2), [2 / 3, 1 / 3, 0, 0]),
        (Sampling(top_k=9), [0.5, 0.25, 0.15, 0.1]),
        (Sampling(top_p=0.4), [1.0, 0, 0, 0]),
        (Sampling(top_p=0.6), [2 / 3, 1 / 3, 0, 0]),
        (Sampling(top_p=0.8), [5 / 9, 2.5 / 9, 1.5 / 9, 0]),
        (Sampling(top_k=3, top_p=0.8), [2 / 3, 1 / 3, 0, 0]),  # of the three left, .5556 + .2778 reach .8
    ],
)
def test_the_tail_is_cut(sampling, expected):
    torch.testing.assert_close(drawn(sampling), torch.tensor(expected))


def test_tokens_in_any_order():
    order = torch.tensor([2, 0, 3, 1])
    warped = Sampling(top_p=0.6).warp(PROBS.log()[order]).softmax(-1)
    torch.testing.assert_close(warped, torch.tensor([0, 2 / 3, 0, 1 / 3]))


def test_a_drawn_token_stays_finite():
    warped = Sampling(top_k=1).warp(PROBS.log().expand(2, 4), keep=torch.tensor([0, 3])).softmax(-1)
    torch.testing.assert_close(warped, torch.tensor([[1.0, 0, 0, 0], [5 / 6, 0, 0, 1 / 6]]))


def test_logits_of_bf16_leave_in_float32():
    assert Sampling().warp(PROBS.log().bfloat16()).dtype == torch.float32


@pytest.mark.parametrize("bad", [{"temperature": 0}, {"top_k": -1}, {"top_p": 0}, {"top_p": 1.5}])
def test_impossible_settings_are_refused(bad):
    with pytest.raises(UserError, match=next(iter(bad))):
        Sampling(**bad)
