"""Numbers of a model that is never built, against those of one that is."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig

from lit_align.errors import UserError
from lit_align.models import LoRAConfig
from lit_align.models.adapters import with_lora
from lit_align.plan.shapes import shape_of


def test_parameters_are_those_of_the_model(architecture):
    found = shape_of(architecture, "sdpa", half=False)
    model = AutoModelForCausalLM.from_config(architecture)
    assert found.parameters == sum(p.numel() for p in model.parameters())
    blocks = next(module for module in model.modules() if isinstance(module, torch.nn.ModuleList))
    in_layers = sum(p.numel() for p in blocks.parameters())
    assert found.outside_layers == found.parameters - in_layers
    assert (found.layers, found.width, found.vocabulary) == (2, 32, 40)
    head = model.get_output_embeddings().weight
    assert found.head == head.numel()
    assert found.own_head == (0 if head is model.get_input_embeddings().weight else head.numel())
    adapted = with_lora(model, LoRAConfig(rank=3))
    trained = sum(p.numel() for p in adapted.parameters() if p.requires_grad)
    assert 3 * found.linear == 3 * shape_of(architecture, "sdpa", half=False, lora=LoRAConfig(rank=3)).linear == trained


def test_an_adapter_to_some_layers():
    config = LlamaConfig(hidden_size=8, intermediate_size=12, num_hidden_layers=3, num_attention_heads=2, vocab_size=20)
    # From 8 to 8, in each of three layers.
    assert shape_of(config, "sdpa", half=False, lora=LoRAConfig(rank=2, target_modules=["q_proj"])).linear == 3 * 16
    with pytest.raises(UserError, match=r"lora\.target_modules: .*nowhere"):
        shape_of(config, "sdpa", half=False, lora=LoRAConfig(target_modules=["nowhere"]))


@pytest.mark.parametrize("setting", ["float32", "bf16-mixed", "bf16-true", "adapter to bfloat16, bf16-mixed"])
def test_what_a_layer_keeps_is_what_autograd_keeps(architecture, setting):
    """Counted on a real forward pass, of models with one layer more and one layer fewer."""
    half = "mixed" in setting
    lora = LoRAConfig(rank=3) if "adapter" in setting else None
    dtype = torch.bfloat16 if "bfloat16" in setting or "true" in setting else torch.float32

    def kept(layers: int, tokens: int) -> int:
        torch.manual_seed(0)
        architecture.num_hidden_layers = layers
        if getattr(architecture, "layer_types", None):
            architecture.layer_types = architecture.layer_types[:1] * layers
        model = AutoModelForCausalLM.from_config(architecture, attn_implementation="sdpa").to(dtype).train()
        trunk = (model if lora is None else with_lora(model, lora).get_base_model()).base_model
        weights = {p.data_ptr() for p in trunk.parameters()}
        found: dict[int, torch.Tensor] = {}

        def keep(tensor: torch.Tensor) -> torch.Tensor:
            found[tensor.untyped_storage().data_ptr()] = tensor
            return tensor

        hooks = torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor)
        with hooks, torch.autocast("cpu", torch.bfloat16, enabled=half):
            trunk(input_ids=torch.zeros(1, tokens, dtype=torch.long), use_cache=False)
        return sum(t.untyped_storage().nbytes() for pointer, t in found.items() if pointer not in weights)

    if hasattr(architecture, "n_layer"):
        for name in ("resid_pdrop", "embd_pdrop", "attn_pdrop"):
            setattr(architecture, name, 0.0)
    shape = shape_of(architecture, "sdpa", half, dtype, lora)
    expected = kept(3, 48) - kept(2, 48)
    assert shape.kept_per_layer + 48 * shape.kept_per_token == pytest.approx(expected, rel=0.02)
