"""The frozen model that a policy is compared with."""

from __future__ import annotations

import copy
import hashlib
from typing import TypeVar

import torch
from torch import nn

from lit_align.errors import UserError

AnyModule = TypeVar("AnyModule", bound=nn.Module)


def frozen_copy(model: AnyModule) -> AnyModule:
    """A copy of the weights in memory that is never trained: no gradients, eval mode.

    It is taken from memory and not loaded again by name, because what a name stands for can change during a run.
    """
    return copy.deepcopy(model).requires_grad_(False).eval()


@torch.no_grad()
def fingerprint(model: nn.Module) -> str:
    """A short digest of a model's weights, cheap enough for every start: names, shapes, sums and sums of squares."""
    digest = hashlib.sha256()
    for name, value in model.state_dict().items():
        numbers = value.detach().double()
        digest.update(
            f"{name}{tuple(value.shape)}{numbers.sum().item():.12e}{numbers.square().sum().item():.12e}".encode()
        )
    return digest.hexdigest()[:16]


class Reference:
    """A frozen model, kept beside a module and not in it: modules only register modules, and this is none.

    Args:
        model: What `frozen_copy` gave.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.fingerprint = fingerprint(model)

    def check(self, saved: str | None) -> None:
        """Refuses to go on from a checkpoint whose run was compared with another reference.

        Raises:
            UserError: The weights differ.
        """
        if saved is not None and saved != self.fingerprint:
            raise UserError(
                "The checkpoint was trained against another reference model than the one that policy.path gives now "
                f"(fingerprint {saved}, now {self.fingerprint}). Point policy.path at the model the run started from."
            )
