"""FSDP2 as a strategy of the Trainer."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.strategies import FSDPStrategy, ModelParallelStrategy, StrategyRegistry

from lit_align.errors import UserError

_SHARDED_NEXT: ContextVar[bool] = ContextVar("_SHARDED_NEXT", default=False)


class FSDP2(ModelParallelStrategy):
    """Shards weights, gradients and optimiser over all devices of all nodes; each layer is gathered when it runs.

    Everything a method holds is sharded: policy, critic, reference, and the model of a reward source. While responses are
    sampled the policy's weights are whole on every device. Batches, steps and results are those of DDP.

    Under `precision: bf16-mixed` layers are gathered in bfloat16, and gradients are reduced in float32.

    In a config it is `strategy: fsdp2`, or `fsdp2_offload`; with other arguments `class_path: lit_align.runtime.FSDP2`.

    Args:
        cpu_offload: Keeps shards of weights, gradients and optimiser in the machine's memory, and steps there. Slow; for a
            model that does not fit otherwise.
        save_distributed_checkpoint: Writes a checkpoint as a folder, of which each rank writes its part. False gathers
            everything on rank 0, which writes one file as DDP does.
    """

    def __init__(self, cpu_offload: bool = False, save_distributed_checkpoint: bool = True) -> None:
        super().__init__(save_distributed_checkpoint=save_distributed_checkpoint)
        self.cpu_offload = cpu_offload

    def setup_environment(self) -> None:
        """Shards over every device there is."""
        self._data_parallel_size, self._tensor_parallel_size = self.num_nodes * self.num_processes, 1
        if self.cpu_offload and self.root_device.type == "cuda":
            # The norm of gradients is then a tensor of the CPU, which NCCL cannot reduce.
            self._process_group_backend = "cpu:gloo,cuda:nccl"
        super().setup_environment()

    @contextmanager
    def model_sharded_context(self) -> Iterator[None]:
        """Around `configure_model`, whose models `setup` shards."""
        with before_sharding():
            yield

    def setup(self, trainer: Trainer) -> None:
        """Shards the module's models, before an optimiser asks for their weights.

        Raises:
            UserError: The module has no `shard`.
        """
        module = self.lightning_module
        shard: Any = getattr(module, "shard", None)
        if not callable(shard):
            raise UserError(
                f"{type(module).__name__} does not say how it is sharded: derive from AlignmentModule, or use DDP."
            )
        # torch 2.13 warns of writing in place to what a sharded model returns, and nobody does (2026-11).
        warnings.filterwarnings("ignore", "FSDP2-wrapped module .* returned a view tensor", UserWarning)
        shard(**self._options())
        super().setup(trainer)

    def _options(self) -> dict[str, Any]:
        """What `fully_shard` is told."""
        from torch.distributed.fsdp import CPUOffloadPolicy, MixedPrecisionPolicy, OffloadPolicy

        options: dict[str, Any] = {
            "mesh": self.device_mesh["data_parallel"],
            "reshard_after_forward": True,
            "offload_policy": CPUOffloadPolicy() if self.cpu_offload else OffloadPolicy(),
        }
        if self.precision_plugin.precision == "bf16-mixed":
            options["mp_policy"] = MixedPrecisionPolicy(
                param_dtype=torch.bfloat16, reduce_dtype=torch.float32, cast_forward_inputs=False
            )
        return options

    def model_to_device(self) -> None:
        """Moves what is not sharded; shards are where they should be."""
        from torch.distributed.fsdp import FSDPModule

        assert self.model is not None
        for name, buffer in self.model.named_buffers(recurse=False):
            setattr(self.model, name, buffer.to(self.root_device))
        for child in self.model.children():
            if not isinstance(child, FSDPModule):
                child.to(self.root_device)


StrategyRegistry.register("fsdp2", FSDP2, "FSDP2 over all devices; its checkpoints are folders")
StrategyRegistry.register("fsdp2_offload", FSDP2, "FSDP2 with shards in the machine's memory", cpu_offload=True)


@contextmanager
def before_sharding() -> Iterator[None]:
    """Inside, `is_sharded_next` is true: each model that is made there has to be sharded before any is trained."""
    token = _SHARDED_NEXT.set(True)
    try:
        yield
    finally:
        _SHARDED_NEXT.reset(token)


def is_sharded_next() -> bool:
    """Whether models that are made now are sharded next. A shard is a copy, so until then they may share their memory."""
    return _SHARDED_NEXT.get()


def refuse_other_sharding(trainer: Trainer) -> None:
    """Refuses strategies that shard in a way that the methods are not made for.

    Raises:
        UserError: Names FSDP2.
    """
    strategy = trainer.strategy
    other_mesh = isinstance(strategy, ModelParallelStrategy) and not isinstance(strategy, FSDP2)
    if other_mesh or isinstance(strategy, FSDPStrategy) or type(strategy).__name__ == "DeepSpeedStrategy":
        raise UserError(
            f"{type(strategy).__name__} is not supported: set trainer.strategy to fsdp2, which shards weights, gradients and "
            "optimiser over all devices."
        )
