"""The loss of supervised fine-tuning."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from lit_align.groups import sum_by_response
from lit_align.losses import NLL, SFTLoss


def test_one_value_a_token() -> None:
    logps = torch.log(torch.tensor([0.5, 0.25, 1.0]))
    torch.testing.assert_close(NLL()(logps, torch.tensor([0, 0, 1])), torch.tensor([0.693147, 1.386294, 0.0]))


def test_every_token_is_made_likelier() -> None:
    logps = torch.tensor([-1.0, -1e4], requires_grad=True)
    (gradient,) = torch.autograd.grad(NLL()(logps, torch.tensor([0, 1])).sum(), logps)
    torch.testing.assert_close(gradient, torch.tensor([-1.0, -1.0]))


def test_a_loss_of_ones_own_is_one_frozen_dataclass() -> None:
    @dataclass(frozen=True)
    class MeanOfResponse(SFTLoss):
        """Every response weighs the same, however long."""

        def __call__(self, logps: Tensor, response_index: Tensor) -> Tensor:
            lengths = torch.bincount(response_index)
            return sum_by_response(-logps, response_index, len(lengths)) / lengths

    values = MeanOfResponse()(torch.tensor([-1.0, -3.0, -5.0]), torch.tensor([0, 0, 1]))
    torch.testing.assert_close(values, torch.tensor([2.0, 5.0]))
    with pytest.raises(TypeError, match="abstract"):
        SFTLoss()  # type: ignore[abstract]
