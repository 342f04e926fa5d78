"""The state a model is sampled in, and its return to the one it is trained in."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn


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


@contextmanager
def gathered(model: nn.Module) -> Iterator[None]:
    """Holds the whole weights of an FSDP2 model on every rank, so that ranks may decode different numbers of tokens.

    A forward pass of a sharded model gathers weights from all ranks; the rank that still decodes would wait for one that has
    finished. Without FSDP2 this does nothing. Afterwards each module reshards as `fully_shard` documents as its default:
    after the forward pass, except the outermost.
    """
    shards = _fsdp_modules(model)
    inner = {id(child) for shard in shards for child in shard.modules() if child is not shard}
    for shard in shards:
        shard.set_reshard_after_forward(False, recurse=False)
        shard.unshard()
    try:
        yield
    finally:
        for shard in shards:
            shard.reshard()
            shard.set_reshard_after_forward(id(shard) in inner, recurse=False)


def _fsdp_modules(model: nn.Module) -> list[Any]:
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return []
    from torch.distributed.fsdp import FSDPModule

    return [module for module in model.modules() if isinstance(module, FSDPModule)]
