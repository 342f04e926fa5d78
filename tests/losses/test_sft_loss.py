"""The losses of supervised fine-tuning."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from lit_align.errors import UserError
from lit_align.groups import sum_by_response
from lit_align.losses import NLL, SFTLoss, Unlikelihood


def test_one_value_a_token() -> None:
    logps = torch.log(torch.tensor([0.5, 0.25, 1.0]))
    torch.testing.assert_close(NLL()(logps, torch.tensor([0, 0, 1]), None), torch.tensor([0.693147, 1.386294, 0.0]))


def test_every_token_is_made_likelier() -> None:
    logps = torch.tensor([-1.0, -1e4], requires_grad=True)
    (gradient,) = torch.autograd.grad(NLL()(logps, torch.tensor([0, 1]), None).sum(), logps)
    torch.testing.assert_close(gradient, torch.tensor([-1.0, -1.0]))


def test_a_loss_of_ones_own_is_one_frozen_dataclass() -> None:
    @dataclass(frozen=True)
    class MeanOfResponse(SFTLoss):
        """Every response weighs the same, however long."""

        def __call__(self, logps: Tensor, response_index: Tensor, labels: Tensor | None) -> Tensor:
            lengths = torch.bincount(response_index)
            return sum_by_response(-logps, response_index, len(lengths)) / lengths

    values = MeanOfResponse()(torch.tensor([-1.0, -3.0, -5.0]), torch.tensor([0, 0, 1]), None)
    torch.testing.assert_close(values, torch.tensor([2.0, 5.0]))
    with pytest.raises(TypeError, match="abstract"):
        SFTLoss()  # type: ignore[abstract]


INDEX = torch.tensor([0, 0, 1, 1, 1])
LABELS = torch.tensor([True, False])


def test_unlikelihood_by_hand() -> None:
    logps = torch.tensor([0.5, 0.25, 0.5, 0.25, 0.75]).log()
    # -ln 1/2, -ln 1/4 of the desirable response; -ln(1 - 1/2), -ln(1 - 1/4), -ln(1 - 3/4) of the other.
    expected = torch.tensor([0.693147, 1.386294, 0.693147, 0.287682, 1.386294])
    torch.testing.assert_close(Unlikelihood()(logps, INDEX, LABELS), expected)
    weighed = Unlikelihood(alpha=0.5)(logps, INDEX, LABELS)
    torch.testing.assert_close(weighed, expected * torch.tensor([1.0, 1.0, 0.5, 0.5, 0.5]))


def test_only_what_stands_just_before_the_stop_is_made_less_likely() -> None:
    logps = torch.tensor([0.5, 0.25, 0.5, 0.25, 0.75]).log().requires_grad_()
    losses = Unlikelihood(window=2)(logps, INDEX, LABELS)
    torch.testing.assert_close(losses, torch.tensor([0.693147, 1.386294, 0.0, 0.287682, 1.386294]))
    (gradient,) = torch.autograd.grad(losses.sum(), logps)
    # d -log(1 - p) / d log p = p / (1 - p)
    torch.testing.assert_close(gradient, torch.tensor([-1.0, -1.0, 0.0, 1 / 3, 3.0]))
    torch.testing.assert_close(Unlikelihood(window=3)(logps, INDEX, LABELS), Unlikelihood()(logps, INDEX, LABELS))


def test_unlikelihood_of_certain_and_of_impossible_tokens_is_finite() -> None:
    logps = torch.tensor([0.0, -1e4], requires_grad=True)
    losses = Unlikelihood()(logps, torch.tensor([0, 0]), torch.tensor([False]))
    (gradient,) = torch.autograd.grad(losses.sum(), logps)
    assert losses.isfinite().all()
    assert gradient.isfinite().all()
    assert losses[0] > 15
    assert losses[1] == 0


def test_labels_go_with_the_loss_that_reads_them() -> None:
    logps = torch.tensor([-1.0])
    with pytest.raises(UserError, match="NLL makes every response likelier"):
        NLL()(logps, torch.tensor([0]), torch.tensor([False]))
    with pytest.raises(UserError, match=r"Unlikelihood needs rows with labels \(LabelData\)"):
        Unlikelihood()(logps, torch.tensor([0]), None)


@pytest.mark.parametrize(
    ("arguments", "message"), [({"window": 0}, "window is a number of tokens"), ({"alpha": 0.0}, "alpha must be")]
)
def test_hyper_parameters_of_unlikelihood(arguments: dict[str, float], message: str) -> None:
    with pytest.raises(UserError, match=message):
        Unlikelihood(**arguments)  # type: ignore[arg-type]
