"""Which setting to change where a run does not fit."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from lit_align.plan.memory import LAST_ROUND, Held, Work, peak

WORTH = 0.98
"""Share of what is needed under which a change has to bring it, to be worth saying."""


def advice(work: Work, room: float) -> str:
    """The changes that save memory, each with what would be needed after it, the most effective first.

    Args:
        work: What does not fit.
        room: Bytes that it should fit. Where no one change does, it is said which do together.
    """
    found = sorted((peak(changed).total, change) for change, changed in _changes(work))
    helpful = [(needed, change) for needed, change in found if needed < WORTH * peak(work).total]
    if not helpful:
        return "Take a smaller model, or more devices with trainer.strategy: fsdp2."
    said = "What helps: " + "; ".join(f"{change} ({needed / 1e9:.1f} GB)" for needed, change in helpful) + "."
    return said if helpful[0][0] <= room else f"{said} {_together(work, room)}"


def _together(work: Work, room: float) -> str:
    """The most effective change, and then the most effective after it, until all fits or nothing helps any more."""
    taken: list[str] = []
    while (needed := peak(work).total) > room:
        left = [(peak(changed).total, change, changed) for change, changed in _changes(work) if change not in taken]
        total, change, changed = min(left, key=lambda option: option[0], default=(needed, "", work))
        if total >= WORTH * needed:
            return f"No one of them is enough; {' + '.join(taken)} need {needed / 1e9:.1f} GB. Take a smaller model as well."
        taken.append(change)
        work = changed
    return f"No one of them is enough; {' + '.join(taken)} need {needed / 1e9:.1f} GB."


def _changes(work: Work) -> list[tuple[str, Work]]:
    """What could be set otherwise, and what the work would then be."""
    lengths = "max_prompt_length and rollout.max_new_tokens" if work.sampled_rows else "max_length"
    changes: list[tuple[bool, str, Callable[[], Work]]] = [
        (not work.policy.recompute, "policy.activation_checkpointing: true", lambda: replace(work, held=[
            replace(model, recompute=True) if model.name == "policy" else model for model in work.held])),
        (work.rows > 1, "half the batch, and twice accumulate_grad_batches", lambda: replace(
            work, rows=-(-work.rows // 2), mask=work.mask // 2, accumulates=True)),
        (work.columns > 512, f"half of {lengths}", lambda: replace(
            work, columns=work.columns // 2, targets=None if work.targets is None else work.targets // 2,
            sampled_columns=work.sampled_columns // 2, mask=work.mask // 4)),
        (work.sampled_rows > 1, "half of rollout.max_rows", lambda: replace(work, sampled_rows=work.sampled_rows // 2)),
        (not work.fused, "optimizer.fused: true", lambda: replace(work, fused=True)),
        # Each model then has shards of its own.
        (work.ranks == 1, "strategy: fsdp2 on eight devices", lambda: replace(
            work, ranks=8, buckets=False, held=[replace(model, shares=False) for model in work.held])),
        (work.ranks > 1, "twice the devices", lambda: replace(work, ranks=2 * work.ranks)),
        (work.ranks > 1 and not work.offload, "strategy: fsdp2_offload", lambda: replace(work, offload=True)),
        (not any(model.rank for model in work.held), "policy.lora: {rank: 16}, with policy.dtype: bfloat16", lambda: replace(
            work, held=[_adapted(model, shares=work.ranks == 1) for model in work.held])),
    ]  # fmt: skip
    return [(name, changed()) for applies, name, changed in changes if applies]


def _adapted(model: Held, shares: bool) -> Held:
    if model.name == "policy":
        return replace(model, rank=16, width=2)
    if model.name == LAST_ROUND:
        return replace(model, rank=16, width=2, shares=shares)
    return replace(model, width=2, shares=shares) if model.name == "reference" else model
