"""A DPO step beside TRL's, on the same rows, weights and batches.

    python -m benchmarks.dpo --peer trl --peer-python PYTHON [--data FOLDER] [--model 40m] [--vocab 16000] [--batch 4]
                             [--reference frozen|cached] [--layout shared|padded] [--threads 2] [--device cpu] [--repeats 10]

PYTHON is that of an environment with TRL 1.16: this one with the extra `benchmarks`, or one of its own where versions conflict.
With `--data` the rows are the pairs of `dpo_en_demo.json` in that folder, else random words with about UltraFeedback's lengths;
without those longer than `--max-length`, which the two would cut differently. A step is what a batch costs the user: collating,
reference and policy forward, backward, clipping and AdamW, under bf16-mixed, in each library's own trainer. The losses must
agree to 1 % at each step. TRL is set to its best: no gradient checkpointing. On a busy machine take one thread, and read the
ratio of processor time.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path

from benchmarks.paired import Side, check_losses, compare, report


def main() -> None:
    """Runs the comparison that the command line describes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer", choices=["trl"], default="trl")
    parser.add_argument("--peer-python", default=sys.executable)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--model", default="40m")
    parser.add_argument("--vocab", type=int, default=16_000)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--max-length", type=int, default=1024)
    parser.add_argument("--reference", choices=["frozen", "cached"], default="frozen")
    parser.add_argument("--layout", choices=["shared", "padded"], default="shared")
    parser.add_argument("--tokens-per-row", type=int)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--repeats", type=int, default=10)
    settings = vars(parser.parse_args())

    from benchmarks.material import made_up_pairs, real_pairs, write_material

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        rows = made_up_pairs(200) if settings["data"] is None else real_pairs(settings["data"])
        write_material(folder, rows, settings["model"], settings["vocab"], settings["max_length"])
        told = json.dumps({**settings, "data": None, "folder": name, "steps": settings["repeats"] + 3})
        environment = {"OMP_NUM_THREADS": str(settings["threads"]), "TOKENIZERS_PARALLELISM": "false"}
        here = Path(__file__).parent
        peer = Side([settings["peer_python"], str(here / "peers" / "trl_dpo.py"), told], environment)
        ours = Side([sys.executable, "-m", "benchmarks.sides.dpo", told], environment)
        result = compare(ours, peer, settings["repeats"], 2, check_losses)
        report("dpo", result, {**settings, "data": str(settings["data"]), "peer_settings": peer.built["settings"]})
        ours.close()
        peer.close()


if __name__ == "__main__":
    main()
