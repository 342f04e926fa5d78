"""The seven preference losses most used, each at three strengths, on the embedded task.

    python -m benchmarks.dpo_family --policy runs/quickstart/sft/model

Each run is the quickstart's DPO (or KTO) with another loss: same 10,000 rows, same steps, same learning rate; none is tuned.
ORPO is meant to start from a model without SFT; here it starts where the others do. Prints a Markdown table and leaves the
runs, and what `compare` says of them, in `<out>`.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from benchmarks.seeds import lit_align

STRENGTHS = {
    "DPO": (0.3, 0.5, 1.0),
    "RobustDPO": (0.3, 0.5, 1.0),
    "IPO": (0.1, 0.3, 1.0),
    "Hinge": (0.3, 0.5, 1.0),
    "SimPO": (1.0, 2.0, 5.0),
    "ORPO": (0.3, 1.0, 3.0),
    "KTO": (0.3, 0.5, 1.0),
}


def main() -> None:
    """Runs, compares and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--policy", default="runs/quickstart/sft/model", help="The reference: an exported SFT model.")
    parser.add_argument("--out", type=Path, default=Path("runs/dpo_family"))
    parser.add_argument("--epochs", type=int, default=3)
    given = parser.parse_args()
    for loss, betas in STRENGTHS.items():
        for beta in betas:
            train(loss, beta, given)
    lit_align("compare", str(given.out))
    runs = {run["name"]: run for run in json.loads((given.out / "report.json").read_text())["runs"]}
    print("| loss | beta | KL | gold | best at that KL | efficiency | win rate |\n|---|---|---|---|---|---|---|")
    for loss, betas in STRENGTHS.items():
        for beta in betas:
            run = runs[f"{loss}-{beta}"]
            efficiency = "–" if run["efficiency"] is None else f"{run['efficiency']:.3f}"
            print(
                f"| {loss} | {beta} | {run['kl']:.2f} | {run['gold']:.2f} | {run['frontier_gold']:.2f} | {efficiency} "
                f"| {run['win_rate']:.3f} |"
            )


def train(loss: str, beta: float, given: argparse.Namespace) -> None:
    """One run of the quickstart's config with another loss."""
    config = "kto" if loss == "KTO" else "dpo"
    lit_align(
        "fit",
        f"--config=configs/quickstart/{config}.yaml",
        f"--run={given.out / f'{loss}-{beta}'}",
        "--overwrite=true",
        f"--model.policy.path={given.policy}",
        f"--model.loss=lit_align.losses.{loss}",
        f"--model.loss.beta={beta}",
        f"--trainer.max_epochs={given.epochs}",
    )
    print(f"trained {loss} at beta {beta}", flush=True)


if __name__ == "__main__":
    main()
