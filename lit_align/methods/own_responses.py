"""What methods share that train on responses of their own: sampling them, means over ranks, rounds written down."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, Literal, NamedTuple, cast

import torch
from torch import Tensor

from lit_align.data import PromptBatch, padded, shared
from lit_align.errors import UserError
from lit_align.feedback import Answer, decoded_answers
from lit_align.groups import TokenGroup
from lit_align.models import Sampling, gathered, response_logps
from lit_align.rollout import RolloutEngine
from lit_align.rollout.loader import Collate, Rollout


def joined(batches: Sequence[PromptBatch]) -> PromptBatch:
    """Several batches of prompts as one. Fillers are left out, unless all are: then it is one."""
    real = [batch for batch in batches if not batch.is_filler] or [batches[0]]
    return PromptBatch(
        [prompt for batch in real for prompt in batch.prompts],
        [ids for batch in real for ids in batch.prompt_ids],
        [row for batch in real for row in batch.rows],
        is_filler=real[0].is_filler,
    )


def sampled_groups(
    engine: RolloutEngine, tokenizer: Any, prompts: PromptBatch, k: int
) -> tuple[list[TokenGroup], list[Answer]]:
    """K responses to each prompt: as groups to train on, and as answers to score, in the same order."""
    sampled = engine.sample(prompts.prompt_ids, k)
    groups = [
        TokenGroup(ids, [response.ids for response in responses], row=row)
        for ids, responses, row in zip(prompts.prompt_ids, sampled, prompts.rows, strict=True)
    ]
    return groups, decoded_answers(tokenizer, prompts.prompts, prompts.prompt_ids, sampled)


def own_collate(tokenizer: Any, layout: Literal["padded", "shared"], tokens_per_row: int | None) -> Collate:
    """What lays out the batches of a method that makes its own, with the arguments of the DataModules.

    Raises:
        UserError: The layout has no rows of a fixed width.
    """
    if layout == "shared":
        return partial(shared, pad_id=tokenizer.pad_token_id, tokens_per_row=tokens_per_row or 1024)
    if tokens_per_row is not None:
        raise UserError("tokens_per_row has no effect with layout: padded: set layout: shared, or leave it out.")
    return partial(padded, pad_id=tokenizer.pad_token_id)


class Moments(NamedTuple):
    """What `moments_over_ranks` finds, by name.

    Args:
        means: Means.
        variances: Variances, of the population.
        counts: Of how many values.
    """

    means: dict[str, float]
    variances: dict[str, float]
    counts: dict[str, int]


def moments_over_ranks(module: Any, values: dict[str, Tensor], is_filler: bool) -> Moments:
    """Means and variances of each name's values over all ranks; a name without values has neither. Every rank has to call.

    Args:
        module: The LightningModule, for its Trainer and device.
        values: For each name, any number of values; the names are the same on every rank.
        is_filler: Whether this rank's values count for nothing.
    """
    weight = 0.0 if is_filler else 1.0
    sums = [torch.stack([x.new_tensor(len(x)), x.sum(), x.square().sum()]) for x in map(Tensor.double, values.values())]
    reduced = module.trainer.strategy.reduce(weight * torch.stack(sums).to(module.device), reduce_op="sum")
    means, variances, counts = {}, {}, {}
    for name, (count, total, squares) in zip(values, cast("Tensor", reduced).tolist(), strict=True):
        counts[name] = int(count)
        if count:
            means[name] = total / count
            variances[name] = max(squares / count - means[name] ** 2, 0.0)
    return Moments(means, variances, counts)


def rollout_logps(module: Any, model: Any, rollout: Rollout, size: int, sampling: Sampling | None = None) -> Tensor:
    """Log-probability of every token of a rollout under a model, nats, `(M,)`, on the CPU, without gradient.

    Args:
        module: The LightningModule, for its Trainer and device.
        model: A causal language model.
        rollout: M response tokens.
        size: Groups scored at once.
        sampling: As in `response_logps`.
    """
    logps = []
    # Ranks may have different numbers of groups, so of forward passes.
    with torch.no_grad(), gathered(model), module.trainer.precision_plugin.forward_context():
        for begin in range(0, len(rollout.groups), size):
            part = range(begin, min(begin + size, len(rollout.groups)))
            batch = rollout.minibatch(part).batch.to(module.device)
            logps.append(response_logps(model, batch, sampling).cpu())
    return torch.cat(logps)
