"""The frozen model that a policy is compared with."""

from __future__ import annotations

import copy
from typing import TypeVar

from torch import nn

from lit_align.errors import UserError
from lit_align.models.adapters import is_adapted, without_adapter
from lit_align.models.fingerprint import fingerprint

AnyModule = TypeVar("AnyModule", bound=nn.Module)


def frozen_copy(model: AnyModule) -> AnyModule:
    """The model as it is now, never to be trained: no gradients, eval mode.

    It is a copy of the weights in memory and not loaded again by name, because what a name stands for can change during a run.
    Where only an adapter is trained, nothing is copied: it is the same weights without the adapter, which must be a new one.
    """
    if is_adapted(model):
        plain: AnyModule = without_adapter(model)
        return plain.eval()
    return copy.deepcopy(model).requires_grad_(False).eval()


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
