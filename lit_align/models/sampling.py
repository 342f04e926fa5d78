"""How the next token's distribution is shaped. Rollouts and training go through the same few lines.

A policy-gradient ratio compares the log-probability under which a token was drawn with the one being trained. Where the two
come from different code (another temperature, another mask), the ratio is not 1 at the first minibatch and every later
number is off (Huang et al. 2024, "The N+ Implementation Details of RLHF with PPO").
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lit_align.errors import UserError


@dataclass(frozen=True)
class Sampling:
    """The distribution that responses are drawn from.

    Args:
        temperature: Logits are divided by it; 1 leaves the model's own distribution. Greedy decoding is `top_k=1`.
        top_k: Only the k most probable tokens may be drawn; 0 is all of them.
        top_p: Only the most probable tokens that together reach this probability may be drawn; 1 is all of them.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0

    def __post_init__(self) -> None:
        if self.temperature <= 0:
            raise UserError(f"temperature must be positive, got {self.temperature}; for greedy decoding set top_k: 1.")
        if self.top_k < 0:
            raise UserError(f"top_k must be 0 (all tokens) or more, got {self.top_k}.")
        if not 0 < self.top_p <= 1:
            raise UserError(f"top_p must be in (0, 1], got {self.top_p}.")

    def warp(self, logits: Tensor, keep: Tensor | None = None) -> Tensor:
        """Logits of the distribution that is sampled: temperature first, then top-k, then top-p.

        Args:
            logits: Any leading shape, vocabulary last, `(..., V)`.
            keep: Token ids, `(...)`, that are never masked. Training passes the tokens that were drawn: a policy that has
                moved may no longer have them among its top k, and their log-probability must stay finite.

        Returns:
            Logits in float32, `(..., V)`, with minus infinity where a token may not be drawn.
        """
        logits = logits.float()
        if self.temperature != 1:
            logits = logits / self.temperature
        if self.top_k == 0 and self.top_p == 1:
            return logits
        drop = torch.zeros_like(logits, dtype=torch.bool)
        if 0 < self.top_k < logits.shape[-1]:
            drop = logits < logits.topk(self.top_k, dim=-1).values[..., -1:]
        if self.top_p < 1:
            ordered, order = logits.masked_fill(drop, float("-inf")).sort(dim=-1, descending=True, stable=True)
            probs = ordered.softmax(-1)
            # A token stays while the mass before it is still short of top_p, so the first always stays.
            drop = drop | (probs.cumsum(-1) - probs >= self.top_p).gather(-1, order.argsort(-1))
        if keep is not None:
            drop = drop.scatter(-1, keep[..., None], False)
        return logits.masked_fill(drop, float("-inf"))
