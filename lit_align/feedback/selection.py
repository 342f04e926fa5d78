"""Which pairs of responses to have compared, where comparisons are dear: all at random, or where an ensemble is unsure.

Responses are numbered through all prompts, `(N,)`, and `group_index (N,)` says which prompt each answers. Only responses to
one prompt are compared. An ensemble is E reward models that agree where there were labels and differ where there were none.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from lit_align.errors import UserError

Strategy = Literal["uniform", "disagreement", "thompson"]


def every_pair(group_index: Tensor) -> Tensor:
    """All pairs of responses to one prompt, `(Q, 2)`, by prompt, the smaller index first.

    Args:
        group_index: Sorted, `(N,)`.
    """
    sizes = torch.bincount(group_index).tolist()
    pairs, start = [torch.empty(0, 2, dtype=torch.long)], 0
    for size in sizes:
        pairs.append(start + torch.combinations(torch.arange(size), 2))
        start += size
    return torch.cat(pairs)


def uniform_pairs(group_index: Tensor, budget: int, generator: torch.Generator) -> Tensor:
    """Different pairs at random, each as likely as any other.

    Args:
        group_index: Sorted, `(N,)`.
        budget: How many pairs; all of them where there are fewer.
        generator: Where the random numbers come from.

    Returns:
        `(min(budget, Q), 2)`, in random order.
    """
    pairs = every_pair(group_index)
    return pairs[torch.randperm(len(pairs), generator=generator)[: _positive(budget)]]


def most_disputed_pairs(rewards: Tensor, group_index: Tensor, budget: int) -> Tensor:
    """The pairs about whose difference in reward the ensemble disagrees most: largest variance of r(y1) - r(y2).

    Args:
        rewards: Of each response by each member, `(E, N)`.
        group_index: Sorted, `(N,)`.
        budget: How many pairs; all of them where there are fewer.

    Returns:
        `(min(budget, Q), 2)`, the most disputed first; of equally disputed ones the first.
    """
    _check_ensemble(rewards, group_index)
    pairs = every_pair(group_index)
    variance = (rewards[:, pairs[:, 0]] - rewards[:, pairs[:, 1]]).var(dim=0)
    return pairs[variance.argsort(descending=True, stable=True)[: _positive(budget)]]


def thompson_pairs(rewards: Tensor, group_index: Tensor, budget: int, generator: torch.Generator) -> Tensor:
    """Double Thompson sampling (Dwaracherla et al. 2024, 2402.00396): two members each name their favourite.

    A member drawn at random picks the response it likes best, another draw picks the one that it likes best of the others.
    So labels go to what may be the best response, and not to telling apart what nobody would choose. Prompts are visited in
    random order, each once before any is visited again, and no pair is named twice. Where the second draw's favourite is the
    first one's, the source draws again; here it takes the next best.

    Args:
        rewards: Of each response by each member, `(E, N)`.
        group_index: Sorted, `(N,)`.
        budget: How many pairs; all of them where there are fewer.
        generator: Where the random numbers come from.

    Returns:
        `(min(budget, Q), 2)`, in the order of choice.
    """
    _check_ensemble(rewards, group_index)
    sizes = torch.bincount(group_index)
    starts = (sizes.cumsum(0) - sizes).tolist()
    free = {group: ~torch.eye(size, dtype=torch.bool) for group, size in enumerate(sizes.tolist()) if size > 1}
    chosen: list[tuple[int, int]] = []
    _positive(budget)
    while free and len(chosen) < budget:
        groups = list(free)
        for turn in torch.randperm(len(groups), generator=generator)[: budget - len(chosen)].tolist():
            group, start = groups[turn], starts[groups[turn]]
            members = torch.randint(len(rewards), (2,), generator=generator)
            first_likes, second_likes = rewards[members, start : start + len(free[group])]
            first = int(first_likes.masked_fill(~free[group].any(1), -torch.inf).argmax())
            second = int(second_likes.masked_fill(~free[group][first], -torch.inf).argmax())
            free[group][first, second] = free[group][second, first] = False
            chosen.append((start + first, start + second))
            if not free[group].any():
                del free[group]
    return torch.tensor(chosen, dtype=torch.long).reshape(-1, 2)


def select_pairs(
    strategy: Strategy, rewards: Tensor | None, group_index: Tensor, budget: int, generator: torch.Generator
) -> Tensor:
    """Pairs by the strategy of that name, `(min(budget, Q), 2)`; the arguments are those of the functions above.

    Raises:
        UserError: There is no ensemble where the strategy needs one.
    """
    if strategy == "uniform":
        return uniform_pairs(group_index, budget, generator)
    if rewards is None:
        raise UserError(f"The selection {strategy!r} asks an ensemble of rewards: name two or more.")
    if strategy == "disagreement":
        return most_disputed_pairs(rewards, group_index, budget)
    return thompson_pairs(rewards, group_index, budget, generator)


def _positive(budget: int) -> int:
    if budget < 1:
        raise UserError(f"budget must be at least 1 pair, got {budget}.")
    return budget


def _check_ensemble(rewards: Tensor, group_index: Tensor) -> None:
    if rewards.ndim != 2 or len(rewards) < 2 or rewards.shape[1] != len(group_index):
        raise UserError(
            f"An ensemble needs two rewards or more, each with a number for each of the {len(group_index)} responses; got "
            f"{tuple(rewards.shape)}."
        )
