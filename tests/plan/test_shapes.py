"""Numbers of a model that is never built, against those of one that is."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoModelForCausalLM

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
    adapted = with_lora(model, LoRAConfig(rank=3))
    assert 3 * found.linear == sum(p.numel() for p in adapted.parameters() if p.requires_grad)


@pytest.mark.parametrize("half", [False, True])
def test_what_a_layer_keeps_is_what_autograd_keeps(architecture, half):
    """Counted on a real forward pass, of models with one layer more and one layer fewer."""

    def kept(layers: int, tokens: int) -> int:
        torch.manual_seed(0)
        architecture.num_hidden_layers = layers
        if getattr(architecture, "layer_types", None):
            architecture.layer_types = architecture.layer_types[:1] * layers
        trunk = AutoModelForCausalLM.from_config(architecture, attn_implementation="sdpa").base_model.train()
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
    shape = shape_of(architecture, "sdpa", half)
    expected = kept(3, 48) - kept(2, 48)
    assert shape.kept_per_layer + 48 * shape.kept_per_token == pytest.approx(expected, rel=0.02)
