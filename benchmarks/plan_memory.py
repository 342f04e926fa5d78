"""What `plan` says against what runs take: resident memory at its highest, on the CPU, over that before the run.

python -m benchmarks.plan_memory --cases DPO "PPO, critic" --sizes 10M 30M
"""

from __future__ import annotations

import argparse
import copy
import gc
import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

WORDS = ["tell", "me", "about", "cats", "dogs", "birds", "fish", "please"]
VOCABULARY, PROMPT, LENGTH, BATCH = 8000, 16, 192, 4
SIZES = {
    "none": {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1},
    "3M": {"hidden_size": 128, "intermediate_size": 384, "num_hidden_layers": 6},
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
GOLD = {"class_path": "lit_align.feedback.LengthReward", "init_args": {"start": 8, "limit": LENGTH}}
ROLLOUT = {"rollout": {"max_new_tokens": LENGTH - PROMPT}}
PPO = {"reward": GOLD, "minibatches": 2, "responses_per_prompt": 2, **ROLLOUT}
SHARED = {"data": {"layout": "shared"}}
HALF = {"trainer": {"precision": "bf16-mixed"}}


class Case(NamedTuple):
    """A kind of run.

    Args:
        method: The class that is run.
        model: Its arguments, besides the policy.
        others: Further settings of the config, merged into it.
    """

    method: str
    model: dict[str, Any]
    others: dict[str, Any]


def policy(**settings: Any) -> dict[str, Any]:
    """A model's settings, as `Case.model` has them."""
    return {"policy": settings}


CASES = {
    "SFT": Case("SFT", {}, {}),
    "RewardModel": Case("RewardModel", {}, {}),
    "DPO": Case("DPO", {}, {}),
    "KTO": Case("KTO", {}, {}),
    "RRHF": Case("RRHF", {}, {}),
    "RRHF, candidates": Case("RRHF", {"candidates": {"reward": GOLD, "responses_per_prompt": 4, **ROLLOUT}}, {}),
    "PPO": Case("PPO", PPO, {}),
    "PPO, critic": Case("PPO", PPO | {"critic": {}}, {}),
    "OnlineDPO": Case("OnlineDPO", {"judge": GOLD, **ROLLOUT}, {}),
    "SPA": Case("SPA", {
        "judge": {"class_path": "lit_align.feedback.RewardJudge", "init_args": {"reward": GOLD}},
        "prompts_per_round": [8], "refinement": {"lambdas": [0.5]}, "keep_rounds": False, **ROLLOUT,
    }, {}),
    "DPO, shared": Case("DPO", {}, SHARED),
    "RRHF, shared": Case("RRHF", {}, SHARED),
    "PPO, entropy": Case("PPO", PPO | {"entropy_coef": 0.01}, {}),
    "PPO, shared": Case("PPO", PPO | {"layout": "shared"}, {}),
    "SFT, bf16-mixed": Case("SFT", {}, HALF),
    "DPO, bf16-mixed": Case("DPO", {}, HALF),
    "PPO, bf16-mixed": Case("PPO", PPO, HALF),
    "SFT, bf16-true": Case("SFT", {}, {"trainer": {"precision": "bf16-true"}}),
    "DPO, checkpointing": Case("DPO", policy(activation_checkpointing=True), {}),
    "RewardModel, checkpointing": Case("RewardModel", policy(activation_checkpointing=True), {}),
    "DPO, LoRA": Case("DPO", policy(lora={"rank": 8}), {}),
    "PPO, LoRA": Case("PPO", PPO | policy(lora={"rank": 8}), {}),
    "DPO, accumulated": Case("DPO", {}, {"trainer": {"accumulate_grad_batches": 2, "fast_dev_run": 4}}),
}  # fmt: skip


def config(case: Case, size: str, folder: Path) -> Path:
    """A config whose every row is as long as may be, most of it response, and the rows."""
    overrides = {
        "vocab_size": VOCABULARY, "num_attention_heads": 4, "num_key_value_heads": 4, "max_position_embeddings": 512,
    }  # fmt: skip
    of_rows = case.method in ROWS and "candidates" not in case.model
    rows = folder / "rows.jsonl"
    model = {"path": "mini_instruct", "init": "random", "overrides": overrides | SIZES[size]}
    args = merged({"policy": model}, case.model)
    if "critic" in args:
        args["critic"] = model
    given: dict[str, Any] = {
        "seed_everything": 1,
        "threads": 1,
        "trainer": {
            "accelerator": "cpu", "devices": 1, "precision": "32-true", "fast_dev_run": 2, "logger": False,
            "enable_progress_bar": False, "enable_model_summary": False,
        },
        "model": {"class_path": case.method, "init_args": args},
        "data": {
            "class_path": ROWS[case.method] if of_rows else "PromptData",
            "init_args": {
                "train": str(rows), "batch_size": BATCH, "max_length" if of_rows else "max_prompt_length":
                LENGTH if of_rows else PROMPT,
            },
        },
    }  # fmt: skip
    others = copy.deepcopy(case.others)
    given["data"]["init_args"] |= others.pop("data", {})
    given = merged(given, others)
    lines = [
        json.dumps(row(case.method if of_rows else "prompts", n))
        for n in range(BATCH * given["trainer"]["fast_dev_run"])
    ]
    rows.write_text("\n".join(lines))
    file = folder / f"{size}.json"
    file.write_text(json.dumps(given))
    return file


def merged(one: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    """Two nested dictionaries as one; where both have a value, the other's."""
    inner = {k: merged(one[k], v) for k, v in other.items() if isinstance(v, dict) and isinstance(one.get(k), dict)}
    return one | other | inner


def row(kind: str, number: int) -> dict[str, Any]:
    """A row of a method's kind, whose prompt and responses have exactly so many tokens, EOS among them."""

    def text(n: int, seed: int) -> str:
        return " ".join(WORDS[(seed * (i + 1) + i // len(WORDS)) % len(WORDS)] for i in range(n))

    prompt = text(PROMPT, number + 1)
    responses = [text(LENGTH - PROMPT - 1, number + 2 + k) for k in range(4)]
    pair = {"prompt": prompt, "chosen": responses[0], "rejected": responses[1]}
    kinds: dict[str, dict[str, Any]] = {
        "SFT": {"prompt": prompt, "completion": responses[0]},
        "KTO": {"prompt": prompt, "completion": responses[0], "label": number % 2 == 0},
        "RRHF": {"prompt": prompt, "responses": responses, "scores": [4, 3, 2, 1]},
        "DPO": pair,
        "RewardModel": pair,
        "prompts": {"prompt": prompt},
    }
    return kinds[kind]


def resident(what: str) -> int:
    """Bytes of this process that are in memory now (`VmRSS`), or were at most (`VmHWM`)."""
    found = re.search(rf"{what}:\s+(\d+) kB", Path("/proc/self/status").read_text(encoding="ascii"))
    assert found is not None
    return int(found[1]) * 1024


def measure(case: Case, sizes: list[str]) -> dict[str, tuple[int, int]]:
    """Of each size the bytes planned, and those taken over what the process had before; in this process, one after another."""
    from lit_align.__main__ import main as fit
    from lit_align.plan.memory import peak
    from lit_align.plan.read import plan_of, read_config

    found = {}
    with tempfile.TemporaryDirectory() as folder:
        # The first run brings what is loaded once, whatever the size.
        for size in ("none", *sizes):
            file = config(case, size, Path(folder))
            planned = peak(plan_of(read_config([file])).work).total
            gc.collect()
            before = resident("VmRSS")
            # Forgets how much it was at most.
            Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
            sys.argv = ["lit-align", "fit", "--config", str(file)]
            if code := fit():
                raise SystemExit(code)
            found[size] = (planned, resident("VmHWM") - before)
    return {size: found[size] for size in sizes}


def compare(case: str, sizes: list[str]) -> dict[str, tuple[int, int]]:
    """What `measure` finds in a process of its own."""
    # Blocks go back to the system when they are freed, so that what is resident is what is in use.
    environment = os.environ | {
        "OMP_NUM_THREADS": "1",
        "MALLOC_MMAP_THRESHOLD_": "65536",
        "MALLOC_TRIM_THRESHOLD_": "65536",
    }
    command = [sys.executable, "-m", "benchmarks.plan_memory", "--child", "--cases", case, "--sizes", *sizes]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(done.stderr)
    return {size: (planned, taken) for size, (planned, taken) in json.loads(done.stdout.splitlines()[-1]).items()}


def main() -> None:
    """Prints one line for each case and size."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", nargs="+", default=list(CASES), choices=CASES)
    parser.add_argument("--sizes", nargs="+", default=["10M", "30M", "80M"], choices=list(SIZES)[1:])
    parser.add_argument("--child", action="store_true", help="measure in this very process")
    arguments = parser.parse_args()
    if arguments.child:
        print(json.dumps(measure(CASES[arguments.cases[0]], arguments.sizes)))
        return
    for case in arguments.cases:
        for size, (planned, taken) in compare(case, arguments.sizes).items():
            print(f"{case:20}{size:>5} planned {planned / 1e6:8.0f} MB, taken {taken / 1e6:8.0f} MB, ", end="")
            print(f"{planned / taken - 1:+.1%}", flush=True)


if __name__ == "__main__":
    main()
