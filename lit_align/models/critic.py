"""Critics: what a response is expected to be worth, read before each of its tokens."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from lit_align.groups import GroupBatch
from lit_align.models.config import ModelConfig
from lit_align.models.logprobs import response_hidden

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


def save_value_head(head: nn.Linear, folder: str | Path) -> None:
    """Writes a head beside the policy in `folder`, where `value_head` finds it."""
    save_file(
        {name: value.detach().cpu().contiguous() for name, value in head.state_dict().items()},
        Path(folder) / VALUE_HEAD_FILE,
    )


def response_values(critic: Any, batch: GroupBatch) -> Tensor:
    """What a separate critic, built like a reward model, expects before each response token: float32, `(M,)`."""
    values: Tensor = critic.score(response_hidden(critic, batch)).squeeze(-1)
    return values.float()
