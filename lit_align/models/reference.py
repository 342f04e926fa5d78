"""The model that a policy is compared with: how it is chosen, and how it is kept."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import torch
from torch import nn

from lit_align.errors import UserError
from lit_align.models.adapters import is_adapted, own_parameters, with_another_adapter, without_adapter
from lit_align.models.config import ModelConfig
from lit_align.models.fingerprint import fingerprint
from lit_align.models.sharding import local_weights
from lit_align.runtime.fsdp import is_sharded_next

AnyModule = TypeVar("AnyModule", bound=nn.Module)


@dataclass(frozen=True)
class ReferenceConfig(ABC):
    """What a method compares its policy with: `FrozenReference`, `CachedReference` or `MovingReference`."""

    @abstractmethod
    def check(self, policy: ModelConfig, has_rounds: bool = False) -> None:
        """Refuses a policy, or a method, that cannot be compared so.

        Args:
            policy: The policy.
            has_rounds: Whether the method samples its data in rounds.

        Raises:
            UserError: Says what to change.
        """


@dataclass(frozen=True)
class FrozenReference(ReferenceConfig):
    """The policy as it was before the first step: a copy in memory, or with LoRA the same weights without the adapter."""

    def check(self, policy: ModelConfig, has_rounds: bool = False) -> None:
        """Any policy has one."""


@dataclass(frozen=True)
class CachedReference(ReferenceConfig):
    """The same, worked out once for every row before the first step and read from disk ever after; no model is kept in memory.

    Batches are scored as the first epoch serves them, and there the run is, to the last bit, the one with a frozen copy.
    Afterwards, and in a run with another seed, layout, batch size or number of ranks, it is so up to rounding: a frozen copy
    may give a response another last bit when other responses share its batch.

    Args:
        folder: Where the numbers lie, one file for each combination of weights, encoded rows (hence of tokenizer and
            template) and precision, for all runs that have it in common.
    """

    folder: str = "runs/.reference"

    def check(self, policy: ModelConfig, has_rounds: bool = False) -> None:
        """The policy must be found again where a run is continued or a model is asked for."""
        if policy.init == "random":
            raise UserError(
                "CachedReference needs a policy whose weights can be loaded again, and policy.init is random: name a trained "
                "model, or use FrozenReference."
            )


@dataclass(frozen=True)
class MovingReference(ReferenceConfig):
    """A copy that follows the policy (TR-DPO, Gorbatovski et al. 2024, 2404.09656); checkpoints hold it.

    With LoRA it is a copy of the adapter.

    Args:
        every: Optimiser steps between two updates; or `round`, for methods that sample in rounds: the reference of a round is
            then the policy that sampled it, as in iterative DPO.
        mix: Weight of the policy in an update: 1 replaces the reference (the paper's hard update), less than 1 averages
            (its soft update, equation 4), which LoRA does not allow.
    """

    every: int | Literal["round"] = 512
    mix: float = 1.0

    def __post_init__(self) -> None:
        if self.every != "round" and self.every < 1:
            raise UserError(f"reference.every must be at least 1 optimiser step, or `round`, got {self.every}.")
        if not 0 < self.mix <= 1:
            raise UserError(f"reference.mix is the policy's weight in an update, in (0, 1], got {self.mix}.")

    def check(self, policy: ModelConfig, has_rounds: bool = False) -> None:
        """Weights must have a mean, and rounds must be there to move in."""
        if self.every == "round" and not has_rounds:
            raise UserError("reference.every: round has no meaning for a method without rounds: give optimiser steps.")
        if policy.lora is not None and self.mix < 1:
            raise UserError(
                f"reference.mix is {self.mix}, and the means of two adapters' factors are not the factors of their mean: set "
                "it to 1, or train all weights."
            )

    @torch.no_grad()
    def move(self, reference: nn.Module, policy: nn.Module) -> None:
        """One update: reference <- mix policy + (1 - mix) reference."""
        mine, theirs = (local_weights(own_parameters(model)) for model in (reference, policy))
        if self.mix == 1:
            torch._foreach_copy_(mine, theirs)
        else:
            torch._foreach_lerp_(mine, theirs, self.mix)


def frozen_copy(model: AnyModule) -> AnyModule:
    """The model as it is now, never to be trained: no gradients, eval mode.

    It is a copy of the weights in memory and not loaded again by name, because what a name stands for can change during a run.
    Where only an adapter is trained, nothing is copied: it is the same weights without the adapter, which must be a new one.
    Nor is anything where shards of both are made next.
    """
    if is_adapted(model):
        plain: AnyModule = without_adapter(model)
        return plain.eval()
    same: dict[int, Any] = {}
    if is_sharded_next():
        same = {id(weight): nn.Parameter(weight.detach(), requires_grad=False) for weight in model.parameters()}
    return copy.deepcopy(model, same).requires_grad_(False).eval()


def moving_copy(model: AnyModule) -> AnyModule:
    """As `frozen_copy`, for a copy that is to follow the model: with an adapter it has one of its own, as it is now."""
    if is_adapted(model):
        other: AnyModule = with_another_adapter(model)
        return other.requires_grad_(False).eval()
    return frozen_copy(model)


class Reference:
    """A frozen model, kept beside a module and not in it: modules only register modules, and this is none.

    Args:
        model: The policy, before the first step.
        reload: Loads it again. If given, no copy is kept, and the model is loaded when it is first asked for.
    """

    def __init__(self, model: nn.Module, reload: Callable[[], nn.Module] | None = None) -> None:
        self._reload = reload
        self._model = frozen_copy(model) if reload is None else None
        self.fingerprint = fingerprint(model if self._model is None else self._model)

    @property
    def model(self) -> Any:
        """The model.

        Raises:
            UserError: It was to be loaded again, and other weights were found.
        """
        if self._model is None:
            assert self._reload is not None
            model = self._reload().requires_grad_(False).eval()
            self.check(fingerprint(model))
            self._model = model
        return self._model

    @property
    def in_memory(self) -> bool:
        """Whether the model is there without being loaded."""
        return self._model is not None

    def forget(self) -> None:
        """Frees a model that can be loaded again."""
        if self._reload is not None:
            self._model = None

    def check(self, other: str | None) -> None:
        """Refuses to go on where weights with another fingerprint stand for the reference.

        Raises:
            UserError: The weights differ.
        """
        if other is not None and other != self.fingerprint:
            raise UserError(
                "The run is compared with another reference model than the one that policy.path gives now (fingerprints "
                f"{other} and {self.fingerprint}). Point policy.path at the model the run started from."
            )
