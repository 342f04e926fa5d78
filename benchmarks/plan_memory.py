"""What `plan` says against what runs take: resident memory at its highest, on the CPU, over that of a model of next to no size.

python -m benchmarks.plan_memory --methods DPO PPO --sizes 10M 30M
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

WORDS = ["tell", "me", "about", "cats", "dogs", "birds", "fish", "please"]
VOCABULARY, PROMPT, RESPONSE, BATCH = 8000, 96, 96, 4
SIZES = {
    "none": {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1},
    "10M": {"hidden_size": 256, "intermediate_size": 768, "num_hidden_layers": 7},
    "30M": {"hidden_size": 512, "intermediate_size": 1408, "num_hidden_layers": 7},
    "80M": {"hidden_size": 768, "intermediate_size": 2048, "num_hidden_layers": 10},
}
ROWS = {
    "SFT": "SFTData",
    "RewardModel": "PreferenceData",
    "DPO": "PreferenceData",
    "KTO": "LabelData",
    "RRHF": "RankingData",
}
METHODS = [*ROWS, "PPO", "OnlineDPO", "SPA"]


def config(method: str, size: str, folder: Path) -> Path:
    """A config whose every row is as long as may be, and the rows."""
    sizes = {
        "vocab_size": VOCABULARY,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "max_position_embeddings": 512,
    }
    args: dict[str, Any] = {"policy": {"path": "mini_instruct", "init": "random", "overrides": sizes | SIZES[size]}}
    data: dict[str, Any] = {"train": str(folder / f"{method}.jsonl"), "batch_size": BATCH}
    gold = {"class_path": "lit_align.feedback.LengthReward", "init_args": {"start": 8, "limit": RESPONSE}}
    rollout = {"max_new_tokens": RESPONSE}
    if method in ROWS:
        # With EOS after the response.
        data["max_length"] = PROMPT + RESPONSE + 1
    else:
        data["max_prompt_length"] = PROMPT
        args["rollout"] = rollout
    if method == "PPO":
        args |= {"reward": gold, "rollout": rollout, "minibatches": 1}
    if method == "OnlineDPO":
        args["judge"] = gold
    if method == "SPA":
        args |= {"judge": {"class_path": "lit_align.feedback.RewardJudge", "init_args": {"reward": gold}}}
        args |= {"prompts_per_round": [8], "refinement": {"lambdas": [0.5]}, "keep_rounds": False}
    given = {
        "seed_everything": 1,
        "threads": 1,
        "trainer": {"accelerator": "cpu", "devices": 1, "precision": "32-true", "fast_dev_run": 2, "logger": False},
        "model": {"class_path": method, "init_args": args},
        "data": {"class_path": ROWS.get(method, "PromptData"), "init_args": data},
    }
    file = folder / f"{method}_{size}.json"
    file.write_text(json.dumps(given))
    return file


def write_rows(method: str, folder: Path) -> None:
    """Eight rows of the method's kind, whose prompts and responses have exactly so many tokens."""

    def text(n: int, seed: int) -> str:
        return " ".join(WORDS[(seed * (i + 1) + i // len(WORDS)) % len(WORDS)] for i in range(n))

    lines = []
    for row in range(8):
        prompt, one, two = text(PROMPT, row + 1), text(RESPONSE, row + 2), text(RESPONSE, row + 3)
        responses = [text(RESPONSE, row + 2 + k) for k in range(4)]
        kinds: dict[str, dict[str, Any]] = {
            "SFT": {"prompt": prompt, "completion": one},
            "KTO": {"prompt": prompt, "completion": one, "label": row % 2 == 0},
            "RRHF": {"prompt": prompt, "responses": responses, "scores": [4, 3, 2, 1]},
            "DPO": {"prompt": prompt, "chosen": one, "rejected": two},
            "RewardModel": {"prompt": prompt, "chosen": one, "rejected": two},
        }
        lines.append(json.dumps(kinds.get(method, {"prompt": prompt})) + "\n")
    (folder / f"{method}.jsonl").write_text("".join(lines))


def child(what: str, file: str) -> None:
    """Prints one number of bytes: what a run took, or what `plan` says."""
    if what == "plan":
        from lit_align.plan.memory import peak
        from lit_align.plan.read import plan_of, read_config

        print(peak(plan_of(read_config([Path(file)])).work).total)
        return
    from lit_align.__main__ import main as fit

    sys.argv = ["lit-align", "fit", "--config", file]
    code = fit()
    if code:
        raise SystemExit(code)
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)


def number(what: str, file: Path) -> int:
    """What a fresh process prints last."""
    # Blocks go back to the system when they are freed, so that what is resident is what is in use.
    environment = os.environ | {
        "OMP_NUM_THREADS": "1",
        "MALLOC_MMAP_THRESHOLD_": "65536",
        "MALLOC_TRIM_THRESHOLD_": "65536",
    }
    command = [sys.executable, "-m", "benchmarks.plan_memory", "--child", what, str(file)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(done.stderr)
    return int(done.stdout.split()[-1])


def compare(method: str, sizes: list[str], folder: Path) -> dict[str, tuple[float, float]]:
    """For each size the bytes over those of next to no model: planned, and taken."""
    write_rows(method, folder)
    planned, taken = (
        {s: number(what, config(method, s, folder)) for s in ("none", *sizes)} for what in ("plan", "fit")
    )
    return {size: (planned[size] - planned["none"], taken[size] - taken["none"]) for size in sizes}


def main() -> None:
    """Prints one line for each method and size."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--methods", nargs="+", default=METHODS, choices=METHODS)
    parser.add_argument("--sizes", nargs="+", default=["10M", "30M", "80M"], choices=list(SIZES)[1:])
    parser.add_argument("--child", nargs=2)
    arguments = parser.parse_args()
    if arguments.child:
        child(*arguments.child)
        return
    for method in arguments.methods:
        with tempfile.TemporaryDirectory() as folder:
            for size, (planned, taken) in compare(method, arguments.sizes, Path(folder)).items():
                print(f"{method:12}{size:>5} planned {planned / 1e6:8.0f} MB, taken {taken / 1e6:8.0f} MB, ", end="")
                print(f"{planned / taken - 1:+.1%}", flush=True)


if __name__ == "__main__":
    main()
