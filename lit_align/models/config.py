"""Which model, and how it is built: one form for policy, reward model, critic and judge."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch

from lit_align.errors import UserError

EMBEDDED = {task: Path(__file__).parents[1] / "data" / task / "model" for task in ("mini_instruct", "mini_assistant")}
"""Models that come with the package: a configuration and a tokenizer, no weights."""


@dataclass(frozen=True)
class LoRAConfig:
    """A low-rank adapter (2106.09685): W x becomes W x + alpha / rank B A x, and only A and B are trained.

    Args:
        rank: Rows of A and columns of B.
        alpha: Scale of the update. The learning rate should be about ten times that of training all weights.
        dropout: On the input of A. 0 where the policy must not be noisy, as in PPO.
        target_modules: Names of linear layers, as `[q_proj, v_proj]`. All of them below the head if not given.
    """

    rank: int = 16
    alpha: float = 32.0
    dropout: float = 0.0
    target_modules: list[str] | None = None

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise UserError(f"lora.rank must be at least 1, got {self.rank}.")
        if self.alpha <= 0:
            raise UserError(f"lora.alpha must be positive, got {self.alpha}: with 0 the adapter would have no effect.")
        if not 0 <= self.dropout < 1:
            raise UserError(f"lora.dropout must be in [0, 1), got {self.dropout}.")
        if self.target_modules == []:
            raise UserError("lora.target_modules is empty, so nothing would be trained: leave it out for all layers.")


@dataclass(frozen=True)
class ModelConfig:
    """A model from a folder, from the hub, or from a configuration.

    Args:
        path: A folder, a hub name, or `mini_instruct` or `mini_assistant`, an embedded task's tiny Llama (with `init: random`).
        init: `pretrained` loads the weights found at `path`; `random` reads only its configuration.
        overrides: Values that replace those of the model's configuration, such as `{num_hidden_layers: 4}`. With
            `init: random` any value; with `pretrained` only those that leave the shapes of the weights alone.
        tokenizer: Where the tokenizer is, if not at `path`.
        pad_token: Token that fills batches, for tokenizers that name none. It must not be the EOS token of a reward model,
            because transformers reads the score of an exported one at the last token that is not padding.
        chat_template: A Jinja file that replaces the tokenizer's chat template.
        dtype: Of the weights. Under `precision: bf16-mixed` keep float32: bf16 weights lose the small updates of alignment.
        attn_implementation: As in transformers: `sdpa`, `eager`, `flash_attention_2`, ...
        dropout: Sets every dropout rate of the model's configuration. 0 for alignment methods: a policy that is compared
            with a reference must not be noisy.
        activation_checkpointing: Keeps only the input of each layer for the backward pass, and computes the rest again: a third
            more time for a fraction of the memory.
        lora: Trains a low-rank adapter instead of all weights; a reward head is still trained in full. `{}` for the defaults.
        trust_remote_code: Runs Python code that the folder or hub repository brings. Only for sources you trust.
        revision: Branch, tag or commit of a hub repository.
    """

    path: str
    init: Literal["pretrained", "random"] = "pretrained"
    overrides: dict[str, Any] = field(default_factory=dict)
    tokenizer: str | None = None
    pad_token: str | None = None
    chat_template: str | None = None
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    attn_implementation: str = "sdpa"
    dropout: float = 0.0
    activation_checkpointing: bool = False
    lora: LoRAConfig | None = None
    trust_remote_code: bool = False
    revision: str | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.dropout < 1:
            raise UserError(f"dropout must be in [0, 1), got {self.dropout}.")
        if self.path in EMBEDDED and self.init == "pretrained":
            raise UserError(
                f"{self.path!r} comes without weights: set init: random, or path to a trained model's folder."
            )

    def refuse_training(self, owner: str) -> None:
        """Refuses settings that only a model that is trained has a use for.

        Args:
            owner: Who keeps the model as it is, for what is said to people.

        Raises:
            UserError: Names the settings.
        """
        settings = {
            "lora": self.lora,
            "activation_checkpointing": self.activation_checkpointing,
            "dropout": self.dropout,
        }
        if given := [name for name, value in settings.items() if value not in (None, False, 0.0)]:
            raise UserError(
                f"{owner}: nothing is trained here, so {' and '.join(given)} would have no effect. Leave "
                f"{'it' if len(given) == 1 else 'them'} out."
            )

    @property
    def location(self) -> str:
        """Folder or hub name of the model."""
        return str(EMBEDDED.get(self.path, self.path))

    @property
    def tokenizer_location(self) -> str:
        """Folder or hub name of the tokenizer."""
        source = self.tokenizer or self.path
        return str(EMBEDDED.get(source, source))

    @property
    def torch_dtype(self) -> torch.dtype:
        """`dtype` as torch names it."""
        dtype: torch.dtype = getattr(torch, self.dtype)
        return dtype
