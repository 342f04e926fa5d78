"""What `bf16-true` costs: the quickstart's DPO in four precisions at three learning rates, measured exactly.

    python -m benchmarks.precision --policy runs/quickstart/sft/model [--kahan]

Same rows, same steps, same order. Weights in bf16 have 8 bits after the first, so that an update much smaller than a weight's
256th part is rounded away. `--kahan` adds AdamW with what was rounded away kept in a second bf16 number (Kahan summation),
as the package `torch-optimi` has it, which has to be there. Prints a Markdown table: exact KL to the SFT model and exact gold,
and of the training loss of the last epoch the mean distance from float32's at the same step.
"""

from __future__ import annotations

import argparse
import csv
import json
import statistics
from pathlib import Path

from benchmarks.seeds import lit_align

PRECISIONS = {
    "32-true": ["--trainer.precision=32-true"],
    "bf16-mixed": ["--trainer.precision=bf16-mixed"],
    "bf16-true": ["--trainer.precision=bf16-true"],
}
KAHAN = {"bf16-true, Kahan": ["--trainer.precision=bf16-true", "--model.optimizer=optimi.AdamW"]}
LEARNING_RATES = (1e-3, 1e-4, 1e-5)


def main() -> None:
    """Runs, compares and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--policy", default="runs/quickstart/sft/model", help="The reference: an exported SFT model.")
    parser.add_argument("--out", type=Path, default=Path("runs/precision"))
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--kahan", action="store_true")
    given = parser.parse_args()
    precisions = PRECISIONS | (KAHAN if given.kahan else {})
    for name, arguments in precisions.items():
        for rate in LEARNING_RATES:
            train(name, rate, arguments, given)
    lit_align("compare", str(given.out))
    runs = {run["name"]: run for run in json.loads((given.out / "report.json").read_text())["runs"]}
    print("| learning rate | precision | KL | gold | loss from float32's |\n|---|---|---|---|---|")
    for rate in LEARNING_RATES:
        exact = last_losses(folder(given.out, "32-true", rate), given.epochs)
        for name in precisions:
            run = folder(given.out, name, rate)
            losses = last_losses(run, given.epochs)
            distance = statistics.mean(abs(losses[step] - exact[step]) for step in exact)
            measured = runs[run.name]
            print(f"| {rate:g} | {name} | {measured['kl']:.4f} | {measured['gold']:.3f} | {distance:.4f} |")


def train(name: str, rate: float, arguments: list[str], given: argparse.Namespace) -> None:
    """One run of the quickstart's config."""
    lit_align(
        "fit",
        "--config=configs/quickstart/dpo.yaml",
        f"--run={folder(given.out, name, rate)}",
        "--overwrite=true",
        f"--model.policy.path={given.policy}",
        f"--trainer.max_epochs={given.epochs}",
        *arguments,
        f"--model.optimizer.lr={rate}",
        "--model.optimizer.weight_decay=0",
        *(["--model.optimizer.kahan_sum=true"] if "optimi" in " ".join(arguments) else []),
    )
    print(f"trained {name} at {rate:g}", flush=True)


def folder(out: Path, name: str, rate: float) -> Path:
    """Where a run is."""
    return out / f"{name.replace(', ', '-')}-{rate:g}"


def last_losses(run: Path, epochs: int) -> dict[str, float]:
    """The training loss at the logged steps of the last epoch."""
    with (run / "metrics.csv").open(encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if row.get("train/loss")]
    return {row["step"]: float(row["train/loss"]) for row in rows if int(row["epoch"]) == epochs - 1}


if __name__ == "__main__":
    main()
