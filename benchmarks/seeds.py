"""The quickstart's methods over several seeds: SFT, then each method from it, with other data and random numbers each time.

    python -m benchmarks.seeds --methods dpo ppo_gold --seeds 0 1 2 3 4

A method is a file in configs/quickstart. Prints one line a run, then mean and standard deviation over the seeds, and writes
all of it to `<out>/seeds.json`.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

CONFIGS = Path("configs/quickstart")
NEEDS_REWARD_MODEL = {"ppo", "ppo_ptx"}
COLUMNS = ("gold", "kl", "efficiency", "win_rate", "accuracy")


def main() -> None:
    """Runs and reports."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", nargs="+", required=True, help="Names of files in configs/quickstart.")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2, 3, 4])
    parser.add_argument("--out", type=Path, default=Path("runs/seeds"), help="A folder for the runs.")
    parser.add_argument(
        "--set", nargs="*", default=[], help="More arguments for every method: --set=--model.loss.beta=0.3"
    )
    given = parser.parse_args()
    results = {seed: run_seed(seed, given.methods, given.out / f"seed{seed}", given.set) for seed in given.seeds}
    summary = {method: summarise([results[seed][method] for seed in given.seeds]) for method in given.methods}
    for method, columns in summary.items():
        print(f"{method:10s} " + "  ".join(f"{name} {mean:.3f} ± {std:.3f}" for name, (mean, std) in columns.items()))
    given.out.mkdir(parents=True, exist_ok=True)
    (given.out / "seeds.json").write_text(
        json.dumps({"runs": results, "mean and standard deviation": summary}, indent=2)
    )


def run_seed(seed: int, methods: list[str], folder: Path, extra: list[str]) -> dict[str, dict[str, Any]]:
    """Trains everything of one seed and measures it exactly."""
    first = ["sft", *(["reward"] if NEEDS_REWARD_MODEL.intersection(methods) and "reward" not in methods else [])]
    seconds = {}
    for method in dict.fromkeys([*first, *methods]):
        arguments = [f"--seed_everything={seed}", f"--data.seed={seed}", f"--run={folder / method}", "--overwrite=true"]
        if method != "sft":
            arguments += [f"--model.policy.path={folder / 'sft' / 'model'}", *extra]
        if method in NEEDS_REWARD_MODEL:
            arguments += [f"--model.reward.model.path={folder / 'reward' / 'model'}"]
        began = time.perf_counter()
        lit_align("fit", f"--config={CONFIGS / method}.yaml", *arguments)
        seconds[method] = round(time.perf_counter() - began, 1)
    lit_align("compare", str(folder))
    report = json.loads((folder / "report.json").read_text())
    found = {run["name"]: {**run, "seconds": seconds[run["name"]]} for run in report["runs"] if run["name"] in seconds}
    for method in methods:
        row = found[method]
        values = "  ".join(f"{name} {row[name]:.3f}" for name in COLUMNS if row[name] is not None)
        print(f"seed {seed}  {method:10s} {values}  {row['seconds']:.0f} s", flush=True)
    return found


def summarise(rows: list[dict[str, Any]]) -> dict[str, tuple[float, float]]:
    """Mean and standard deviation over seeds of whatever applies to the method."""
    columns = {name: [row[name] for row in rows if row[name] is not None] for name in (*COLUMNS, "seconds")}
    return {
        name: (statistics.mean(values), statistics.stdev(values) if len(values) > 1 else 0.0)
        for name, values in columns.items()
        if values
    }


def lit_align(*arguments: str) -> None:
    """Runs the command line as a person would."""
    command = [sys.executable, "-m", "lit_align", *arguments]
    done = subprocess.run(
        command, check=False, capture_output=True, text=True, env={"OMP_NUM_THREADS": "1", **os.environ}
    )
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}\n{done.stderr}")


if __name__ == "__main__":
    main()
