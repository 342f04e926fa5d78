"""`lit-align plan`."""

from __future__ import annotations

from pathlib import Path

from lit_align.errors import UserError

USABLE = 0.9
"""Share of a device's memory that tensors can have."""


def plan(configs: list[str] | None = None, memory: float | None = None) -> None:
    """Say how much memory a run needs on each device, before it starts.

    Weights are not loaded: only the configuration of each model is read. Rows are taken to be as long as the config lets them
    be. Of a GPU's memory about a tenth is not for tensors: the driver, and what the allocator cannot use.

    Args:
        configs: `--config` of the run; several merge in their order.
        memory: Of a device, GB (1e9 bytes). If given, what needs more is an error that says which setting to change.
    """
    if not configs:
        raise UserError("plan reads the config of a run: name it with --config.")
    from rich.console import Console
    from rich.table import Table

    from lit_align.plan.advice import advice
    from lit_align.plan.memory import moments, peak
    from lit_align.plan.read import plan_of, read_config

    found = plan_of(read_config([Path(file) for file in configs]))
    work, console = found.work, Console(highlight=False)
    models = ", ".join(f"{m.name} {m.shape.parameters / 1e9:.2f}B" for m in work.held)
    over = f"{found.devices} device{'s' if found.devices > 1 else ''}"
    over += f", weights sharded over {work.ranks}" if work.ranks > 1 else ""
    console.print(f"{found.method} on {over}: {models}")
    trained = sum(m.trained_bytes // (4 if m.rank else m.width) for m in work.held)
    console.print(f"{trained:,} weights are trained, on batches of {work.rows} rows of {work.columns} tokens a device.")
    for remark in found.remarks:
        console.print(f"Note: {remark}")
    highest = peak(work)
    table = Table(title=f"Memory of a device at its highest: {highest.name}", title_justify="left")
    table.add_column("what")
    table.add_column("GB", justify="right")
    for name, size in highest.parts.items():
        table.add_row(name, f"{size / 1e9:.2f}")
    table.add_row("together", f"{highest.total / 1e9:.2f}")
    console.print(table)
    console.print("; ".join(f"{moment.name} {moment.total / 1e9:.2f}" for moment in moments(work)))
    if memory is None:
        return
    if highest.total > USABLE * memory * 1e9:
        raise UserError(
            f"It does not fit: {highest.total / 1e9:.1f} GB of the {USABLE * memory:.1f} GB that a device with {memory:g} GB "
            f"has for tensors. {advice(work, USABLE * memory * 1e9)}"
        )
    console.print(f"It fits a device with {memory:g} GB.")
