"""Weights sharded over ranks by FSDP2: a block's weights are gathered when it runs, its gradients reduced and scattered.

FSDP2 (Zhao et al. 2023, 2304.11277, in its second form) gathers what a module holds when the module is *called*. Methods call
parts of a model, its trunk and its head, and the head in as many chunks as a rank has tokens. So whatever they do with a model
runs `inside` it, which FSDP2 takes for one call.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from types import MethodType
from typing import Any, TypeVar

import torch
from torch import nn

T = TypeVar("T")
INSIDE, OPTIONS = "lit_align_inside", "lit_align_sharded"


def shard(model: nn.Module, **options: Any) -> None:
    """Shards a model in place: each of its blocks by itself, and the rest, embeddings and head, together.

    Args:
        model: A transformers model, a peft model around one, or a head.
        options: As `torch.distributed.fsdp.fully_shard` takes them.
    """
    from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method

    for block in _blocks(model):
        fully_shard(block, **options)
    fully_shard(model, **options)
    setattr(model, OPTIONS, options)
    setattr(model, INSIDE, MethodType(_call, model))
    register_fsdp_forward_method(model, INSIDE)


def inside(model: Any, function: Callable[..., T], *arguments: Any) -> T:
    """`function(*arguments)`, which may call parts of the model. Not to be nested for one model."""
    call = getattr(model, INSIDE, None)
    result: T = function(*arguments) if call is None else call(function, *arguments)
    return result


def placed(model: Any, device: torch.device, beside: nn.Module | None) -> Any:
    """A frozen model on its device; or sharded, in its own precision, where the model that it stands beside is."""
    if is_sharded(model):
        return model
    if beside is None or not is_sharded(beside):
        return model.to(device)
    shard(model, **{name: value for name, value in getattr(beside, OPTIONS).items() if name != "mp_policy"})
    return model


def is_sharded(model: nn.Module) -> bool:
    """Whether `shard` has sharded this model."""
    return hasattr(model, INSIDE)


def local_weights(parameters: Iterable[nn.Parameter]) -> list[torch.Tensor]:
    """What of each weight is on this rank: all of it, or its shard. Models that are sharded alike have them alike."""
    weights = [parameter.detach() for parameter in parameters]
    return [weight.to_local() if hasattr(weight, "to_local") else weight for weight in weights]


def whole_state(model: nn.Module) -> dict[str, Any]:
    """The state dict; that of a sharded model gathered from all ranks, which all have to call, on rank 0."""
    if not is_sharded(model):
        return model.state_dict()
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

    state: dict[str, Any] = get_model_state_dict(
        model, options=StateDictOptions(full_state_dict=True, cpu_offload=True)
    )
    return state


@contextmanager
def gathered(model: nn.Module) -> Iterator[None]:
    """Holds the whole weights of a sharded model on every rank, so that ranks may run it different numbers of times.

    A forward pass of a sharded model gathers weights from all ranks; the rank that has more to run would wait for one that has
    finished. Without FSDP2 this does nothing.
    """
    shards = _fsdp_modules(model)
    for part in shards:
        part.set_reshard_after_forward(False, recurse=False)
        part.unshard()
    # What is called first becomes the root of all below it, and that must not be a block.
    inside(model, _nothing)
    try:
        yield
    finally:
        for part in shards:
            part.reshard()
            # Else the outermost weights, which FSDP2 keeps by default, would be stale once they are written to shard by shard.
            part.set_reshard_after_forward(True, recurse=False)


def _blocks(model: nn.Module) -> list[nn.Module]:
    """The members of the outermost lists of modules, which in transformers are the layers."""
    lists = [module for module in model.modules() if isinstance(module, nn.ModuleList)]
    nested = {id(inner) for outer in lists for inner in outer.modules() if inner is not outer}
    return [block for outer in lists if id(outer) not in nested for block in outer]


def _fsdp_modules(model: nn.Module) -> list[Any]:
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return []
    from torch.distributed.fsdp import FSDPModule

    return [module for module in model.modules() if isinstance(module, FSDPModule)]


def _call(model: nn.Module, function: Callable[..., T], *arguments: Any) -> T:
    return function(*arguments)


def _nothing() -> None:
    """Lets a model be called for the sake of it."""
