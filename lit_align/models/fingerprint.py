"""What tells one set of weights from another."""

from __future__ import annotations

import hashlib

import torch
from torch import nn


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
