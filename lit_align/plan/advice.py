"""Which setting to change where a run does not fit."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from lit_align.plan.memory import Held, Work, peak


def advice(work: Work) -> str:
    """The changes that save memory, each with what would be needed after it, the most effective first."""
    found = []
    for change, changed in _changes(work):
        needed = peak(changed).total
        if needed < 0.98 * peak(work).total:
            found.append((needed, change))
    if not found:
        return "Take a smaller model, or more devices with trainer.strategy: fsdp2."
    return "What helps: " + "; ".join(f"{change} ({needed / 1e9:.1f} GB)" for needed, change in sorted(found)) + "."


def _changes(work: Work) -> list[tuple[str, Work]]:
    """What could be set otherwise, and what the work would then be."""
    changes: list[tuple[bool, str, Callable[[], Work]]] = [
        (not work.held[0].recompute, "policy.activation_checkpointing: true", lambda: replace(
            work, held=[replace(work.held[0], recompute=True), *work.held[1:]])),
        (work.rows > 1, "half the batch, and twice accumulate_grad_batches", lambda: replace(
            work, rows=-(-work.rows // 2), accumulates=True)),
        (work.columns > 512, "half of max_length", lambda: replace(work, columns=work.columns // 2)),
        (work.sampled_rows > 1, "half of rollout.max_rows", lambda: replace(work, sampled_rows=work.sampled_rows // 2)),
        (not work.fused, "optimizer.fused: true", lambda: replace(work, fused=True)),
        (work.ranks == 1, "strategy: fsdp2 on eight devices", lambda: replace(work, ranks=8)),
        (work.ranks > 1, "twice the devices", lambda: replace(work, ranks=2 * work.ranks)),
        (work.ranks > 1 and not work.offload, "strategy: fsdp2_offload", lambda: replace(work, offload=True)),
        (not any(model.rank for model in work.held), "policy.lora: {rank: 16}, with policy.dtype: bfloat16", lambda: replace(
            work, held=[_adapted(model) for model in work.held])),
    ]  # fmt: skip
    return [(name, changed()) for applies, name, changed in changes if applies]


def _adapted(model: Held) -> Held:
    if model.name == "policy":
        return replace(model, rank=16, width=2)
    return replace(model, shares=True) if model.name.startswith("reference") else model
