"""A step of the K-wise reward model beside TRL's on all pairs of the same rankings.

    python -m benchmarks.reward --peer-python PYTHON --data FOLDER [--k 4] [--batch 2] [--model 40m] [--vocab 16000]
                                [--layout shared|padded] [--threads 2] [--device cpu] [--repeats 10]

PYTHON is that of an environment with TRL 1.16. The rows are the prompts of `dpo_en_demo.json` in that folder, each with K
responses drawn from all of that file. Ours runs a prompt and its K responses once; TRL's RewardTrainer knows pairs, so it is
given all K (K - 1) / 2 of a ranking, `--peer-batch` at a time with accumulation: as many optimiser steps on the same
comparisons. A step is what a batch costs the user, under bf16-mixed, in each library's own trainer, and the losses must agree
to 1 %. TRL is set to its best: no gradient checkpointing, few pairs at once, which on a CPU is less padding. On a busy
machine take one thread, and read the ratio of processor time.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from itertools import combinations
from pathlib import Path

from benchmarks.paired import Side, check_losses, compare, report


def main() -> None:
    """Runs the comparison that the command line describes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer-python", default=sys.executable)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--k", type=int, default=4)
    parser.add_argument("--model", default="40m")
    parser.add_argument("--vocab", type=int, default=16_000)
    parser.add_argument("--batch", type=int, default=2, help="Rankings.")
    parser.add_argument("--peer-batch", type=int, help="Pairs that TRL runs at once; up to 4 if not given.")
    parser.add_argument("--max-length", type=int, default=1024)
    parser.add_argument("--layout", choices=["shared", "padded"], default="shared")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--repeats", type=int, default=10)
    settings = vars(parser.parse_args())

    from benchmarks.material import real_rankings, write_material

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        rows = real_rankings(settings["data"], settings["k"])
        write_material(folder, rows, settings["model"], settings["vocab"], settings["max_length"], reward=True)
        write_pairs(folder)
        pairs = settings["batch"] * settings["k"] * (settings["k"] - 1) // 2
        settings["peer_batch"] = settings["peer_batch"] or max(n for n in range(1, 5) if pairs % n == 0)
        accumulate, rest = divmod(pairs, settings["peer_batch"])
        if rest:
            raise SystemExit(f"--peer-batch has to divide the {pairs} pairs of a batch.")
        told = json.dumps(
            {**settings, "data": None, "folder": name, "steps": settings["repeats"] + 3, "accumulate": accumulate}
        )
        environment = {"OMP_NUM_THREADS": str(settings["threads"]), "TOKENIZERS_PARALLELISM": "false"}
        here = Path(__file__).parent
        peer = Side([settings["peer_python"], str(here / "peers" / "trl_reward.py"), told], environment)
        ours = Side([sys.executable, "-m", "benchmarks.sides.reward", told], environment)
        result = compare(ours, peer, settings["repeats"], 1, check_losses)
        report("reward", result, {**settings, "data": str(settings["data"]), "peer_settings": peer.built["settings"]})
        ours.close()
        peer.close()


def write_pairs(folder: Path) -> None:
    """Writes `pairs.jsonl`: every pair of each ranking in `rows.jsonl`, as TRL reads them."""
    with (folder / "pairs.jsonl").open("w", encoding="utf-8") as pairs:
        for line in (folder / "rows.jsonl").read_text(encoding="utf-8").splitlines():
            row = json.loads(line)
            for better, worse in combinations(row["responses"], 2):
                sides = {"chosen": better, "rejected": worse}
                turns = {side: [{"role": "assistant", "content": text}] for side, text in sides.items()}
                pairs.write(json.dumps({"prompt": row["prompt"], **turns}) + "\n")


if __name__ == "__main__":
    main()
