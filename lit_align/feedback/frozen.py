"""A causal language model that reads and is not trained."""

from __future__ import annotations

from functools import cached_property
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from lit_align.models import ModelConfig, load_policy, load_tokenizer


class FrozenModel:
    """A model that is loaded when it is first asked for, in eval mode and without gradients.

    Args:
        owner: The class that asks for it, for what is said to people.
        config: Which model.
    """

    def __init__(self, owner: str, config: ModelConfig) -> None:
        config.refuse_training(owner)
        self.config = config
        self.device = torch.device("cpu")

    def to(self, device: torch.device | str) -> None:
        """Moves the model, now or when it is loaded."""
        self.device = torch.device(device)
        if "model" in vars(self):
            self.model.to(self.device)

    @cached_property
    def model(self) -> Any:
        """The model, on `device`.

        Raises:
            UserError: As `load_policy`.
        """
        return load_policy(self.config).requires_grad_(False).eval().to(self.device)

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """Its tokenizer.

        Raises:
            UserError: As `load_tokenizer`.
        """
        return load_tokenizer(self.config)
