"""The model that a callback compares the policy with, also for modules that have no reference of their own."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from callbacks.base import ask, quiet
from lit_align.errors import UserError
from lit_align.models import ModelConfig, Reference, is_adapted, is_sharded, load_policy, placed


class ComparedWith:
    """The module's reference; where it has none, as in SFT, the policy as it was at the start of the run.

    The latter is a copy in memory, or with LoRA the policy's weights without the adapter. Weights that are sharded cannot be
    copied, so under FSDP2 it is loaded by the module's `policy_config`, and sharded like the policy. It is in no checkpoint: a
    resumed run loads it in the same way, and goes on only with the same weights.

    Args:
        callback: Who asks, for error messages.
    """

    def __init__(self, callback: Callback) -> None:
        self._callback = callback
        self._initial: Reference | None = None
        self._fingerprint: str | None = None

    def prepare(self, trainer: Trainer, module: LightningModule) -> None:
        """To be called in `on_fit_start`: keeps the policy if the module has no reference.

        Raises:
            UserError: The policy is sharded or the run is resumed, and what it started from cannot be loaded again.
        """
        self._initial = None
        with quiet(trainer, module, seed=0):  # building a model may draw random numbers
            if _has_reference(module):
                return
            self._initial = self._initial_policy(trainer, module)
        self._initial.check(self._fingerprint)
        self._fingerprint = self._initial.fingerprint

    def model(self, module: LightningModule) -> Any:
        """The model, on the module's device."""
        if self._initial is None:
            return module.reference_model()  # type: ignore[operator]
        return placed(self._initial.model, module.device, ask(module, "policy", self._callback))

    def state(self) -> str | None:
        """Fingerprint of a reference of the callback's own, for its `state_dict`."""
        return self._fingerprint

    def load_state(self, state: str | None) -> None:
        """Takes it back.

        Raises:
            UserError: The reference that is already there is another one.
        """
        self._fingerprint = state
        if self._initial is not None:
            self._initial.check(state)

    def _initial_policy(self, trainer: Trainer, module: LightningModule) -> Reference:
        policy = ask(module, "policy", self._callback)
        sharded = is_sharded(policy)
        if not sharded and (self._fingerprint is None or is_adapted(policy)):
            return Reference(policy)
        config = getattr(module, "policy_config", None)
        if not isinstance(config, ModelConfig) or config.init == "random":
            raise UserError(
                f"{type(self._callback).__name__} compares the policy with the one that the run started from, because "
                f"{type(module).__name__} has no reference, and {'a sharded' if sharded else 'a resumed'} run cannot find it "
                "again: it was not loaded from a folder that `policy_config` names. Leave the callback out, or start from "
                "saved weights."
            )
        return Reference(trainer.precision_plugin.convert_module(load_policy(replace(config, lora=None))))


def _has_reference(module: LightningModule) -> bool:
    reference_model = getattr(module, "reference_model", None)
    if reference_model is None:
        return False
    try:
        reference_model()
    except UserError:  # a method without a reference says so
        return False
    return True
