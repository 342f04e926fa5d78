"""How large a model is and what its forward pass keeps, found by running it on tensors that hold nothing."""

from __future__ import annotations

import copy
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import AttentionInterface, AttentionMaskInterface, AutoModelForCausalLM, PretrainedConfig
from transformers.integrations.sdpa_attention import sdpa_attention_forward

WITHOUT_MASK = "sdpa_without_mask"
"""Attention over rows of one length. transformers leaves their mask out, too, but not where tensors hold nothing to look at."""
AttentionInterface.register(WITHOUT_MASK, sdpa_attention_forward)
AttentionMaskInterface.register(WITHOUT_MASK, lambda *args, **kwargs: None)

SHORT, LONG = 64, 128
"""Tokens of the two rows that are run: what is kept grows in proportion to tokens."""


class Shape(NamedTuple):
    """A causal language model in numbers.

    Args:
        parameters: All of them; an embedding that is also the head counts once.
        outside_layers: Those of embeddings, head and last norm.
        linear: Widths in and out of each linear layer below the head, summed over the layers: what an adapter of rank 1 has.
        layers: How many layers.
        width: Of a hidden state.
        cache_width: Of the keys and values of a token in one layer, both.
        vocabulary: Tokens.
        kept_per_token: Bytes that a layer keeps of each token for the backward pass.
        kept_per_layer: Bytes that it keeps besides: its weights in the precision of the computation.
    """

    parameters: int
    outside_layers: int
    linear: int
    layers: int
    width: int
    cache_width: int
    vocabulary: int
    kept_per_token: float
    kept_per_layer: int


def shape_of(config: PretrainedConfig, attention: str, half: bool) -> Shape:
    """The numbers of a model of this configuration.

    Args:
        config: Of the model.
        attention: As `attn_implementation`; every kernel that does not hold all scores keeps what `sdpa` does.
        half: Whether it computes in bfloat16 from float32 weights (`bf16-mixed`).
    """
    text = config.get_text_config()
    layers = text.num_hidden_layers
    one, two = (_Traced(config, n, attention, half) for n in (1, 2))
    short, long = (two.kept[tokens] - one.kept[tokens] for tokens in (SHORT, LONG))
    per_token = (long - short) / (LONG - SHORT)
    of_layer = two.parameters - one.parameters
    heads = getattr(text, "num_key_value_heads", None) or text.num_attention_heads
    size = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    return Shape(
        parameters=one.parameters + (layers - 1) * of_layer,
        outside_layers=one.parameters - of_layer,
        linear=layers * (two.linear - one.linear),
        layers=layers,
        width=text.hidden_size,
        cache_width=2 * heads * size,
        vocabulary=text.vocab_size,
        kept_per_token=per_token,
        kept_per_layer=round(short - SHORT * per_token),
    )


class _Traced:
    """A model with so many layers, run forward without numbers.

    Args:
        config: As in `shape_of`.
        layers: How many.
        attention: As in `shape_of`.
        half: As in `shape_of`.
    """

    def __init__(self, config: PretrainedConfig, layers: int, attention: str, half: bool) -> None:
        config = copy.deepcopy(config)
        text = config.get_text_config()
        text.num_hidden_layers = layers
        if getattr(text, "layer_types", None):
            text.layer_types = text.layer_types[:layers]
        with FakeTensorMode():
            model = AutoModelForCausalLM.from_config(
                config, attn_implementation="eager" if attention == "eager" else WITHOUT_MASK
            )
            trunk = model.base_model.train()
            self.parameters = sum(parameter.numel() for parameter in model.parameters())
            linear = [module.weight for module in trunk.modules() if _is_linear(module)]
            self.linear = sum(sum(weight.shape) for weight in linear)
            self.kept = {tokens: _kept(trunk, tokens, half) for tokens in (SHORT, LONG)}


def _is_linear(module: Any) -> bool:
    return isinstance(module, torch.nn.Linear) or type(module).__name__ == "Conv1D"


def _kept(trunk: Any, tokens: int, half: bool) -> int:
    """Bytes that a forward pass keeps for the backward pass, without the weights themselves."""
    weights = {parameter.untyped_storage()._cdata for parameter in trunk.parameters()}
    kept: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        # The tensor is held, so that no other one can get the number of its storage.
        kept[tensor.untyped_storage()._cdata] = tensor
        return tensor

    ids = torch.zeros(1, tokens, dtype=torch.long)
    hooks = torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor)
    with hooks, torch.autocast("cpu", torch.bfloat16, enabled=half):
        trunk(input_ids=ids, use_cache=False)
    return sum(tensor.untyped_storage().nbytes() for number, tensor in kept.items() if number not in weights)
