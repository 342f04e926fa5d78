"""A PPO rollout with its updates beside TRL's, on the same prompts and weights, with as many optimiser steps.

    python -m benchmarks.ppo --peer trl --peer-python PYTHON [--data FOLDER] [--max-prompt-length 512] [--model 40m]
                             [--vocab 16000] [--batch 16] [--response-length 64] [--inner-epochs 4] [--layout shared|padded]
                             [--critic separate|head] [--precision bf16-true|32-true] [--threads 2] [--device cpu] [--repeats 5]

PYTHON is that of an environment with TRL 1.10, the last release with PPO (`trl.experimental.ppo`). With `--data` the
prompts are the first of `dpo_en_demo.json` in that folder that are short enough, else a few random words. Every rollout
is of all of them, because the two libraries shuffle differently. A unit of work is what a batch of prompts costs the
user: sampling a response of fixed length to each, a reward model's score, log-probabilities under policy and reference,
values of a critic, and `--inner-epochs` optimiser steps on the whole batch, in each library's own trainer. The critic is
a model of its own on both sides; with `--critic head` ours is a head on the policy's trunk, our default, which the peer
does not have. Both begin with the same random weights, so their entropies, which must agree to 2 %, say whether they
sample the same policy. TRL is set to its best: no gradient checkpointing, the whole batch in one forward, no sample
tables.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.paired import Side, compare, report


def main() -> None:
    """Runs the comparison that the command line describes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer", choices=["trl"], default="trl")
    parser.add_argument("--peer-python", default=sys.executable)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--max-prompt-length", type=int, default=512)
    parser.add_argument("--model", default="40m")
    parser.add_argument("--vocab", type=int, default=16_000)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--response-length", type=int, default=64)
    parser.add_argument("--inner-epochs", type=int, default=4)
    parser.add_argument("--critic", choices=["separate", "head"], default="separate")
    parser.add_argument("--precision", choices=["bf16-true", "32-true"], default="bf16-true")
    parser.add_argument("--layout", choices=["shared", "padded"], default="shared")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--repeats", type=int, default=5)
    settings = vars(parser.parse_args())

    from benchmarks.material import keep_rows, made_up_prompts, real_prompts, write_material, write_reward_model

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        rows = made_up_prompts(settings["batch"]) if settings["data"] is None else real_prompts(settings["data"])
        longest = settings["max_prompt_length"]
        write_material(folder, rows, settings["model"], settings["vocab"], longest + settings["response_length"])
        lengths = keep_rows(folder, settings["batch"], longest)
        write_reward_model(folder)
        told = json.dumps({**settings, "data": None, "folder": name, "updates": settings["repeats"] + 3})
        environment = {"OMP_NUM_THREADS": str(settings["threads"]), "TOKENIZERS_PARALLELISM": "false"}
        here = Path(__file__).parent
        peer = Side([settings["peer_python"], str(here / "peers" / "trl_ppo.py"), told], environment)
        ours = Side([sys.executable, "-m", "benchmarks.sides.ppo", told], environment)
        result = compare(ours, peer, settings["repeats"], 1, check_entropy)
        settings |= {"data": str(settings["data"]), "prompt_lengths": lengths, "peer_settings": peer.built["settings"]}
        report("ppo", result, settings)
        ours.close()
        peer.close()


def check_entropy(ours: dict[str, Any], peer: dict[str, Any]) -> None:
    """Raises where the policies that the two sample from differ."""
    if abs(ours["entropy"] - peer["entropy"]) > 0.02 * abs(peer["entropy"]):
        raise SystemExit(
            f"The entropies differ, so the work does too: {ours['entropy']} ours, {peer['entropy']} the peer's."
        )


if __name__ == "__main__":
    main()
