"""Low-rank adapters (Hu et al. 2021, 2106.09685), by peft: the weights stay as they are, a small update is trained."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Mapping
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from lit_align.errors import UserError
from lit_align.models.config import LoRAConfig
from lit_align.models.fingerprint import fingerprint

ADAPTER = "default"
FINGERPRINT = "base_fingerprint"


def with_lora(model: PreTrainedModel, config: LoRAConfig) -> Any:
    """The model with an adapter, which is all that is trained, besides a reward head, which is trained in full.

    As a part of a checkpoint its state dict holds only that, and the fingerprint of the weights below.

    Returns:
        A `peft.PeftModel` around the same weights.

    Raises:
        UserError: `target_modules` names no layer, or one that is no linear layer of the trunk.
    """
    from peft import LoraConfig, TaskType, get_peft_model
    from peft.tuners.lora import Linear, LoraLayer

    is_reward = isinstance(getattr(model, "score", None), nn.Module)
    settings = LoraConfig(
        task_type=TaskType.SEQ_CLS if is_reward else TaskType.CAUSAL_LM,
        r=config.rank,
        lora_alpha=config.alpha,
        lora_dropout=config.dropout,
        target_modules="all-linear" if config.target_modules is None else config.target_modules,
        modules_to_save=["score"] if is_reward else None,
    )
    base_fingerprint = fingerprint(model.base_model)
    with warnings.catch_warnings():
        # peft 0.21 asks transformers 5.23 for the first (2026-11), and sets the second by itself.
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)
        warnings.filterwarnings("ignore", "fan_in_fan_out is set to")
        try:
            adapted = get_peft_model(model, settings)
        except ValueError as error:
            raise UserError(f"lora.target_modules: {error}") from error
    trunk = {id(module) for module in model.base_model.modules()}
    for name, module in model.named_modules():
        if isinstance(module, LoraLayer) and not (isinstance(module, Linear) and id(module) in trunk):
            raise UserError(
                f"lora.target_modules: {name} of {type(model).__name__} is no linear layer below the head. Name linear layers, "
                "or leave target_modules out for all of them."
            )
    adapted.base_fingerprint = base_fingerprint
    adapted.own_names = frozenset(name for name, parameter in adapted.named_parameters() if parameter.requires_grad)
    adapted.register_state_dict_post_hook(_drop_frozen)
    adapted.register_load_state_dict_pre_hook(_take_frozen)
    return adapted


def is_adapted(model: nn.Module) -> bool:
    """Whether `with_lora` made this model."""
    return hasattr(model, FINGERPRINT)


def own_parameters(model: nn.Module) -> list[nn.Parameter]:
    """What a copy of the model has for itself: all weights, or of an adapted model the adapter, frozen or not."""
    names = getattr(model, "own_names", None)
    return [parameter for name, parameter in model.named_parameters() if names is None or name in names]


def without_adapter(model: Any) -> Any:
    """The model as it is with its adapter off: other modules around the very same tensors, so that it takes no memory."""
    same = {id(tensor): tensor for tensor in chain(model.parameters(), model.buffers())}
    return copy.deepcopy(model, same).unload()


def with_another_adapter(model: Any) -> Any:
    """The model as it is now, with an adapter of its own around the very same weights, so that it takes only that memory."""
    own = set(map(id, own_parameters(model)))
    tensors = chain(model.parameters(), model.buffers())
    return copy.deepcopy(model, {id(tensor): tensor for tensor in tensors if id(tensor) not in own})


def without_weights(model: Any) -> Any:
    """The model below an adapter as a form that weights can be saved in, which itself has none."""
    base = model.get_base_model()
    with torch.device("meta"):
        form = type(base)(base.config)
    if hasattr(base, "generation_config"):
        form.generation_config = base.generation_config
    return form


def merged_state(model: Any, state: Mapping[str, Any]) -> dict[str, Tensor]:
    """Weights of a plain model that computes what an adapted one does.

    Args:
        model: What `with_lora` gave.
        state: Its state dict, whole.

    Returns:
        Names and weights of the model without adapter, W + alpha / rank B A where it had one.
    """
    from peft.tuners.lora import LoraLayer

    layers = {name: module for name, module in model.named_modules() if isinstance(module, LoraLayer)}
    merged = {}
    for key, value in state.items():
        if ".lora_" in key or ".original_module." in key:
            continue
        layer, _, weight = key.rpartition(".base_layer.")
        if weight == "weight":
            a, b = (state[f"{layer}.lora_{which}.{ADAPTER}.weight"].float() for which in "AB")
            update = layers[layer].scaling[ADAPTER] * b @ a
            update = update.T if layers[layer].fan_in_fan_out else update
            value = (value.float() + update).to(value.dtype)  # noqa: PLW2901
        name = key.removeprefix("base_model.model.").replace(".base_layer.", ".")
        merged[name.replace(f".modules_to_save.{ADAPTER}.", ".")] = value
    return merged


def _drop_frozen(model: Any, state: dict[str, Any], prefix: str, _: object) -> None:
    """Leaves the adapter, where the model is part of something that is saved; on its own it is whole."""
    if not prefix:
        return
    kept = model.own_names
    for key in [key for key in state if key.startswith(prefix) and key.removeprefix(prefix) not in kept]:
        del state[key]
    state[prefix + FINGERPRINT] = torch.tensor(list(bytes.fromhex(model.base_fingerprint)), dtype=torch.uint8)


def _take_frozen(model: Any, state: dict[str, Any], prefix: str, *_: object) -> None:
    """Completes what `_drop_frozen` left with the model's own frozen weights."""
    saved = state.pop(prefix + FINGERPRINT, None)
    if saved is None:
        return
    found = bytes(saved.tolist()).hex()
    if found != model.base_fingerprint:
        raise UserError(
            f"The checkpoint holds an adapter to other weights (fingerprint {found}) than those that the model's path gives "
            f"now ({model.base_fingerprint}). Point it at the model the run started from."
        )
    kept = model.own_names
    state.update({prefix + name: tensor for name, tensor in model.state_dict().items() if name not in kept})
