"""What a run is continued with, compared with what it was started with."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from lit_align.errors import UserError

LEAVES_RESULTS_ALONE = re.compile(
    r"(run|threads|config|subcommand"
    # how long, how often, and what is written
    r"|trainer\.((max|min)_(epochs|steps)|max_time|limit_(val|test|predict)_batches|val_check_interval"
    r"|check_val_every_n_epoch|num_sanity_val_steps|log_every_n_steps|logger|callbacks|enable_\w+|profiler"
    r"|default_root_dir|fast_dev_run|detect_anomaly|barebones|inference_mode"
    # on what: the total batch size is compared with the checkpoint's, wherever it comes from
    r"|accelerator|strategy|devices|num_nodes|plugins|benchmark|deterministic)"
    r"|data\.init_args\.(val|val_batch_size|num_workers|cache)"
    r"|model\.init_args\.log_samples_every)(\.|$)"
)
"""Keys that may change between a run and its continuation. All others change what is computed."""

SHOWN = 8
ABSENT = "nothing"


def refuse_changes(then: dict[str, Any], now: dict[str, Any]) -> None:
    """Refuses to go on with other settings than a run was started with.

    Args:
        then: The run's config.
        now: The config that it is to be continued with.

    Raises:
        UserError: A key differs that `LEAVES_RESULTS_ALONE` does not have; the message names each of them.
    """
    changed = changes(then, now)
    if not changed:
        return
    more = "" if len(changed) <= SHOWN else f"\n  and {len(changed) - SHOWN} more"
    listed = "\n  ".join(changed[:SHOWN])
    raise UserError(
        f"The run was started with other settings:\n  {listed}{more}\nPut them back; start over with `--overwrite true` or "
        "another `--run`; or, if the run is to go on with the new ones, add `--accept_changes true`."
    )


def changes(then: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """`key: value then -> value now` for each key that changes what is computed and differs."""
    before, after = dict(_leaves(then)), dict(_leaves(now))
    return [
        f"{key}: {before.get(key, ABSENT)} -> {after.get(key, ABSENT)}"
        for key in {**before, **after}
        if before.get(key, ABSENT) != after.get(key, ABSENT) and not LEAVES_RESULTS_ALONE.match(key)
    ]


def _leaves(config: dict[str, Any], key: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in config.items():
        if isinstance(value, dict) and value:
            yield from _leaves(value, f"{key}{name}.")
        else:
            yield f"{key}{name}", value
