"""Critics: what a response is expected to be worth, read before each of its tokens."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import nn

from lit_align.models.config import ModelConfig
from lit_align.models.sharding import whole_state

VALUE_HEAD_FILE = "value_head.safetensors"


def value_head(model: Any, config: ModelConfig) -> nn.Linear:
    """A scalar head for the trunk of a policy: the one saved beside the policy, or a new one.

    A new one is drawn from normal(0, 1/sqrt(d + 1)), d the width of the trunk (Huang et al. 2024, "The N+ Implementation
    Details of RLHF with PPO").
    """
    width = model.config.get_text_config().hidden_size
    head = nn.Linear(width, 1)
    nn.init.normal_(head.weight, std=1 / math.sqrt(width + 1))
    nn.init.zeros_(head.bias)
    saved = Path(config.location) / VALUE_HEAD_FILE
    if saved.is_file():
        head.load_state_dict(load_file(saved))
    return head


def save_value_head(head: nn.Linear, folder: str | Path, *, write: bool = True) -> None:
    """Writes a head beside the policy in `folder`, where `value_head` finds it; see `save_model` for `write`."""
    state = whole_state(head)
    if write:
        whole = {name: value.detach().cpu().contiguous() for name, value in state.items()}
        save_file(whole, Path(folder) / VALUE_HEAD_FILE)
