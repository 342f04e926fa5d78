"""The state a model is sampled in, and its return to the one it is trained in."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from lit_align.models import gathered


@contextmanager
def rollout_mode(model: nn.Module) -> Iterator[None]:
    """Inside: every module in eval mode, no gradients, no autocast, all weights on every rank. Afterwards all as it was.

    Autocast is off because without gradients it does not cache its casts: every token would convert every weight again.
    """
    trained = [module for module in model.modules() if module.training]
    device = next(model.parameters()).device
    model.eval()
    try:
        with torch.no_grad(), torch.autocast(device.type, enabled=False), gathered(model):
            yield
    finally:
        for module in trained:
            module.training = True
