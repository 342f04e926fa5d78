"""How large a model is and what its forward pass keeps, found by running it on tensors that hold nothing."""

from __future__ import annotations

import copy
import warnings
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import AttentionInterface, AttentionMaskInterface, AutoModelForCausalLM, PretrainedConfig
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from lit_align.errors import UserError
from lit_align.models import LoRAConfig

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
        head: Those of the head over the vocabulary, whether or not they are the embedding's too.
        own_head: Those that are the head's alone: all or none.
        linear: Widths in and out of each linear layer that gets an adapter, summed over the layers: what one of rank 1 has.
        layers: How many layers.
        width: Of a hidden state.
        cache_width: Of the keys and values of a token in one layer, both.
        vocabulary: Tokens.
        kept_per_token: Bytes that a layer keeps of each token for the backward pass.
        kept_per_layer: Bytes that it keeps besides: its weights in the precision of the computation.
    """

    parameters: int
    outside_layers: int
    head: int
    own_head: int
    linear: int
    layers: int
    width: int
    cache_width: int
    vocabulary: int
    kept_per_token: float
    kept_per_layer: int


def shape_of(
    config: PretrainedConfig,
    attention: str,
    half: bool,
    dtype: torch.dtype = torch.float32,
    lora: LoRAConfig | None = None,
) -> Shape:
    """The numbers of a model of this configuration.

    Args:
        config: Of the model.
        attention: As `attn_implementation`; every kernel that does not hold all scores keeps what `sdpa` does.
        half: Whether it computes in bfloat16 whatever its weights are (`bf16-mixed`).
        dtype: Of its weights.
        lora: The adapter that is trained in place of them, if there is one.

    Raises:
        UserError: `lora.target_modules` names no linear layer of the model.
    """
    text = config.get_text_config()
    layers = text.num_hidden_layers
    one, two = (_Traced(config, n, attention, half, dtype, lora) for n in (1, 2))
    short, long = (two.kept[tokens] - one.kept[tokens] for tokens in (SHORT, LONG))
    per_token = (long - short) / (LONG - SHORT)
    of_layer = two.parameters - one.parameters
    heads = getattr(text, "num_key_value_heads", None) or text.num_attention_heads
    size = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    return Shape(
        parameters=one.parameters + (layers - 1) * of_layer,
        outside_layers=one.parameters - of_layer,
        head=one.head,
        own_head=0 if one.is_tied else one.head,
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
        dtype: As in `shape_of`.
        lora: As in `shape_of`.
    """

    def __init__(
        self,
        config: PretrainedConfig,
        layers: int,
        attention: str,
        half: bool,
        dtype: torch.dtype,
        lora: LoRAConfig | None,
    ) -> None:
        config = copy.deepcopy(config)
        text = config.get_text_config()
        text.num_hidden_layers = layers
        if getattr(text, "layer_types", None):
            text.layer_types = text.layer_types[:layers]
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(
                config, attn_implementation="eager" if attention == "eager" else WITHOUT_MASK, dtype=dtype
            )
            trunk = model.base_model.train()
            self.parameters = sum(parameter.numel() for parameter in model.parameters())
            head, embedding = (part.weight for part in (model.get_output_embeddings(), model.get_input_embeddings()))
            self.head, self.is_tied = head.numel(), head is embedding
            self.linear = sum(sum(module.weight.shape) for module in trunk.modules() if _is_linear(module))
            if lora is not None:
                self.linear = _adapt(model, lora) // lora.rank
        # On the CPU, because autocast leaves the device `meta` alone.
        with FakeTensorMode():
            _onto_cpu(trunk)
            self.kept = {tokens: _kept(trunk, tokens, half) for tokens in (SHORT, LONG)}


def _is_linear(module: Any) -> bool:
    return isinstance(module, torch.nn.Linear) or type(module).__name__ == "Conv1D"


def _adapt(model: Any, lora: LoRAConfig) -> int:
    """Puts an adapter into a model; returns how many weights the adapter has."""
    from peft import LoraConfig, get_peft_model

    targets = "all-linear" if lora.target_modules is None else lora.target_modules
    with warnings.catch_warnings():
        # As in `lit_align.models.adapters`: of no concern to a model that is never run on numbers.
        warnings.simplefilter("ignore")
        try:
            get_peft_model(model, LoraConfig(r=lora.rank, target_modules=targets, task_type="CAUSAL_LM"))
        except ValueError as error:
            raise UserError(f"lora.target_modules: {error}") from error
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


def _onto_cpu(trunk: nn.Module) -> None:
    """Gives each weight and buffer, of the device `meta`, one of the mode's tensors that pass for the CPU's."""
    for module in trunk.modules():
        for name, weight in module.named_parameters(recurse=False):
            like = torch.empty(weight.shape, dtype=weight.dtype)
            setattr(module, name, nn.Parameter(like, requires_grad=weight.requires_grad))
        for name, buffer in module.named_buffers(recurse=False):
            setattr(module, name, torch.empty(buffer.shape, dtype=buffer.dtype))


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
