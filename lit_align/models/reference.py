"""The frozen model that a policy is compared with."""

from __future__ import annotations

import copy
import hashlib
from typing import TypeVar

import torch
from torch import nn

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
