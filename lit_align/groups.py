"""The one idea of this package: a **group** is one prompt, its K responses, and what is known of them.

A `Group` holds text, a `TokenGroup` holds token ids, a `GroupBatch` holds many groups ready for a model. Everything
computed from a batch is *ragged*: one flat tensor with a value for every response token, `(M,)`, or for every response,
`(N,)`, and the index tensors that say whose they are. There is no padding in them, so nothing needs a mask.

Sizes used throughout: `M` response tokens, `N` responses, `G` groups, `P` pairs, `R x T` rows and columns of
model input.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypedDict

import torch
from torch import Tensor


class Message(TypedDict):
    """One chat turn, as `transformers` chat templates take it."""

    role: str
    content: str


Text = str | list[Message]
"""Plain text, or chat turns."""


class Span(NamedTuple):
    """A stretch of a response's text and what it weighs.

    Args:
        start: Its first character.
        end: The character after its last one.
        weight: What its tokens count for, where text outside of any span counts for 1. Not negative.
    """

    start: int
    end: int
    weight: float


@dataclass(frozen=True, slots=True)
class Group:
    """One prompt with its K responses, as text.

    Args:
        prompt: Plain text, or the chat turns that come before the response.
        responses: K responses, each plain text; of a chat prompt, each the content of the assistant's next turn.
        scores: K numbers, higher is better, comparable within the group only; None where nothing is known.
            A preferred pair has scores (1, 0); a ranking has minus the ranks.
        labels: K booleans, True where the response is desirable; None where rows carry no labels.
        margin: By how much the better response should win (reward-model loss), in units of the reward.
        source: Where the row came from, for error messages: "rows.jsonl, row 12".
        weights: For each response the spans of it that weigh something other than 1, in order; None where all weighs 1.
        edited: Whether the first response is a person's edit of the second one.
        finished: False where the responses were stopped before their end, so that nothing closes them.
    """

    prompt: Text
    responses: tuple[str, ...]
    scores: tuple[float, ...] | None = None
    labels: tuple[bool, ...] | None = None
    margin: float = 0.0
    source: str = ""
    weights: tuple[tuple[Span, ...], ...] | None = None
    edited: bool = False
    finished: bool = True


class TokenGroup(NamedTuple):
    """A `Group` as token ids. The response ids end with EOS unless the response was cut or stopped.

    Args:
        prompt: Token ids of the prompt, at least one.
        responses: K lists of token ids, each with at least one.
        scores: As in `Group`.
        labels: As in `Group`.
        margin: As in `Group`.
        row: The row's number in its data set, from 0; what a guard names when a batch goes wrong.
        weights: What each token of each response counts for, K lists as long as the responses; None where all count for 1.
    """

    prompt: Sequence[int]
    responses: Sequence[Sequence[int]]
    scores: Sequence[float] | None = None
    labels: Sequence[bool] | None = None
    margin: float = 0.0
    row: int = -1
    weights: Sequence[Sequence[float]] | None = None


class GroupBatch:
    """Groups laid out for a model, and the map from its outputs back to responses.

    A layout (see `lit_align.data.collate`) decides where tokens stand in the `R x T` model input; the flat tensors
    below are the same whatever it decided, in the order of the groups, their responses, and their tokens.

    It is a plain class and no dataclass, because Lightning walks into dataclasses and tuples and, under `bf16-true`,
    rounds the float tensors it finds there; an object with `.to()` it only moves.

    Args:
        model_inputs: What the trunk is called with: `input_ids (R, T)`, `attention_mask`, `position_ids`. The shared layout has
            `visible_until` where the mask would be; see `lit_align.models.tree_mask`.
        predict_index: Positions, flat into `R * T`, whose hidden state predicts each response token, `(M,)`.
        targets: The response tokens themselves, `(M,)`.
        response_index: The response each token belongs to, in `[0, N)`, sorted, `(M,)`.
        last_index: Positions, flat into `R * T`, of each response's last token: where a reward is read, `(N,)`.
        group_index: The group each response belongs to, in `[0, G)`, sorted, `(N,)`.
        margins: As in `Group`, one a group, `(G,)`.
        rows: Row numbers of the groups in their data set, `(G,)`.
        scores: As in `Group`, `(N,)`, or None.
        labels: As in `Group`, boolean `(N,)`, or None.
        token_weights: What each response token counts for, `(M,)`, or None where the rows carry no weights. What cannot use
            them refuses them.
        is_filler: True for a batch that only keeps ranks in step: it is run, and counts for nothing.
    """

    def __init__(
        self,
        model_inputs: dict[str, Tensor],
        predict_index: Tensor,
        targets: Tensor,
        response_index: Tensor,
        last_index: Tensor,
        group_index: Tensor,
        margins: Tensor,
        rows: Tensor,
        scores: Tensor | None = None,
        labels: Tensor | None = None,
        token_weights: Tensor | None = None,
        is_filler: bool = False,
    ) -> None:
        self.model_inputs = model_inputs
        self.predict_index = predict_index
        self.targets = targets
        self.response_index = response_index
        self.last_index = last_index
        self.group_index = group_index
        self.margins = margins
        self.rows = rows
        self.scores = scores
        self.labels = labels
        self.token_weights = token_weights
        self.is_filler = is_filler

    @property
    def n_responses(self) -> int:
        """N, the number of responses."""
        return len(self.group_index)

    @property
    def n_groups(self) -> int:
        """G, the number of groups."""
        return len(self.rows)

    @property
    def response_lengths(self) -> Tensor:
        """Tokens of each response, EOS included, `(N,)`."""
        return torch.bincount(self.response_index, minlength=self.n_responses)

    def weighted_sums(self, values: Tensor) -> Tensor:
        """Sum of token values over each response, every token times its weight: `(M,)` to `(N,)`."""
        weighted = values if self.token_weights is None else values * self.token_weights
        return sum_by_response(weighted, self.response_index, self.n_responses)

    def to(self, device: torch.device | str, non_blocking: bool = False) -> GroupBatch:
        """The batch on another device; its types stay as they are."""
        return self._map(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> GroupBatch:
        """The batch in page-locked memory, as `DataLoader(pin_memory=True)` asks for it."""
        return self._map(Tensor.pin_memory)

    def _map(self, move: Callable[[Tensor], Tensor]) -> GroupBatch:
        moved = copy.copy(self)
        for name, value in vars(self).items():
            if isinstance(value, Tensor):
                setattr(moved, name, move(value))
        moved.model_inputs = {name: move(value) for name, value in self.model_inputs.items()}
        return moved


class Pairs(NamedTuple):
    """P comparisons between responses of the same group.

    Args:
        chosen: Index of the better response in `[0, N)`, `(P,)`.
        rejected: Index of the worse one, `(P,)`.
    """

    chosen: Tensor
    rejected: Tensor


def sum_by_response(values: Tensor, response_index: Tensor, n_responses: int) -> Tensor:
    """Sum of token values over each response: `(M,)` to `(N,)`. A response without tokens sums to 0."""
    return values.new_zeros(n_responses).index_add(0, response_index, values)


def preferred_pairs(scores: Tensor, group_index: Tensor) -> Pairs:
    """Every pair of responses of one group whose scores differ, better first; ties give no pair.

    Args:
        scores: Higher is better, `(N,)`.
        group_index: `(N,)`; responses of different groups are never compared.

    Returns:
        `Pairs` in the order of the better response, then of the worse one.
    """
    same_group = group_index[:, None] == group_index[None, :]
    better = scores[:, None] > scores[None, :]
    chosen, rejected = (same_group & better).nonzero(as_tuple=True)
    return Pairs(chosen, rejected)
