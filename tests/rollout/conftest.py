"""Tiny models with random weights, one of each family that the engine treats in its own way."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

VOCABULARY = 11
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {"num_key_value_heads": 2, "intermediate_size": 24},
    "qwen2": {"num_key_value_heads": 2, "intermediate_size": 24},
    "gpt2": {},
    "bloom": {},
    "mistral": {"num_key_value_heads": 2, "intermediate_size": 24, "sliding_window": 64},
    "gemma3_text": {"num_key_value_heads": 1, "intermediate_size": 24, "head_dim": 8, "sliding_window": 64},
    "mamba": {"state_size": 4},
}


@pytest.fixture
def tiny() -> Callable[..., Any]:
    """`tiny(family, **config)`: a causal language model whose distributions are far from uniform, in eval mode."""

    def build(family: str, vocabulary: int = VOCABULARY, scale: float = 6.0, **more: Any) -> Any:
        sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": vocabulary}
        positions = {} if family in ("bloom", "mamba") else {"max_position_embeddings": 64}
        special = {"bos_token_id": 1, "eos_token_id": None, "pad_token_id": None}
        config = AutoConfig.for_model(family, **{**sizes, **positions, **special, **FAMILIES[family], **more})
        torch.manual_seed(3)
        model = AutoModelForCausalLM.from_config(config)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.ndim == 2:
                    parameter.mul_(scale)
        return model.eval()

    return build
