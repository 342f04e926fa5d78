"""How different two reward models are, apart from what preferences cannot tell: a shift for each prompt, and a scale."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from lit_align.errors import UserError
from lit_align.groups import sum_by_response

DRAWS = 1000


class RewardDistance(NamedTuple):
    """Distance of two reward models on the same responses.

    Args:
        epic: From 0, equal up to a positive scale and a shift for each prompt, to 1, the opposite. The L2-normalised STARC
            distance (Skalse et al. 2023, 2309.15257) of these canonical forms is twice that.
        low: Lower end of the 95 % interval over draws of the prompts.
        high: Upper end.
        scale_ratio: Spread of the first within prompts over that of the second.
    """

    epic: float
    low: float
    high: float
    scale_ratio: float


def canonical(rewards: Tensor, group_index: Tensor) -> Tensor:
    """Rewards minus their mean over each group: what Bradley-Terry can identify of them.

    Args:
        rewards: Any float type, `(N,)`.
        group_index: The group each response belongs to, `(N,)`.

    Returns:
        Float64, `(N,)`.
    """
    n_groups = int(group_index.max()) + 1
    sizes = torch.bincount(group_index, minlength=n_groups)
    return rewards.double() - (sum_by_response(rewards.double(), group_index, n_groups) / sizes)[group_index]


def reward_distance(first: Tensor, second: Tensor, group_index: Tensor, seed: int = 0) -> RewardDistance:
    """sqrt((1 - Pearson(c1, c2)) / 2) of canonical rewards, as EPIC (Gleave et al. 2021, 2006.13900, definition 4.1) has it.

    The canonical form is taken over the responses at hand, where EPIC takes an expectation, so two distances can be compared
    if they are on the same responses. The interval is a percentile bootstrap over prompts.

    Args:
        first: Rewards by one model, `(N,)`.
        second: By the other, `(N,)`.
        group_index: The group each response belongs to, `(N,)`.
        seed: Of the bootstrap.

    Raises:
        UserError: One of the models gives every response to a prompt the same reward.
    """
    c1, c2 = canonical(first, group_index), canonical(second, group_index)
    n_groups = int(group_index.max()) + 1
    moments = torch.stack([sum_by_response(x, group_index, n_groups) for x in (c1 * c1, c2 * c2, c1 * c2)])  # (3, G)
    total = moments.sum(1)
    if not (total[:2] > 0).all():
        raise UserError(
            "A reward model gives all responses to a prompt the same reward, so there is no distance to it."
        )
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.stack(
        [moments[:, torch.randint(n_groups, (n_groups,), generator=generator)].sum(1) for _ in range(DRAWS)], dim=1
    )
    epics = _epic(drawn)
    low, high = epics[epics.isfinite()].quantile(torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    return RewardDistance(_epic(total).item(), low, high, (total[0] / total[1]).sqrt().item())


def _epic(moments: Tensor) -> Tensor:
    """From the sums of c1^2, c2^2 and c1 c2, `(3, ...)` to `(...)`; canonical rewards have mean 0."""
    squares, others, products = moments.unbind()
    pearson = (products / (squares * others).sqrt()).clamp(-1, 1)
    distance: Tensor = ((1 - pearson) / 2).sqrt()
    return distance
