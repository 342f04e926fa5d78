"""Sampling K responses to each of many prompts: the native engine beside `generate` of transformers.

    python -m benchmarks.rollout [--model tiny|20m] [--dtype float32|bfloat16] [--data FOLDER] [--prompts 64] [--k 4]
                                 [--max-new-tokens 32] [--device cpu] [--repeats 5]

With `--data` the prompts are as long as the first of `dpo_en_demo.json` in that folder that have at most 512 tokens,
else they have 8 to 23; which tokens they are makes no difference to the work. Both sample the same model from the same
prompts, in turn, so that a busy machine slows both. The ratio is the median of the paired ratios of time, above 1 where
the engine is faster. The memory ratio is that of what each adds to a fresh process at its peak, below 1 where the
engine needs less. The last line of a setting is its result as JSON.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from benchmarks.material import keep_rows, real_prompts, write_material
from lit_align.rollout import NativeEngine, RolloutConfig

LONGEST = 512
SIZES = {
    "tiny": {"vocab_size": 64, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2},
    "20m": {"vocab_size": 8000, "hidden_size": 384, "intermediate_size": 1024, "num_hidden_layers": 8},
}


class Setting(NamedTuple):
    """What is sampled.

    Args:
        model: A key of `SIZES`.
        dtype: Of the weights.
        device: Where.
        stop_every: One token in so many of the vocabulary ends a response; 0 where none does.
        lengths: Tokens of each prompt.
        k: Responses to each.
        max_new_tokens: Of a response.
    """

    model: str
    dtype: str
    device: str
    stop_every: int
    lengths: tuple[int, ...]
    k: int
    max_new_tokens: int


def build(setting: Setting) -> tuple[Callable[[], Any], Callable[[], Any]]:
    """The engine's call, and that of `generate`."""
    torch.manual_seed(0)
    size = SIZES[setting.model]
    config = LlamaConfig(**size, num_attention_heads=4, num_key_value_heads=2, pad_token_id=0, eos_token_id=None)
    model = LlamaForCausalLM(config).to(setting.device, getattr(torch, setting.dtype)).eval()
    prompts = [torch.randint(1, size["vocab_size"], (length,)).tolist() for length in setting.lengths]
    stop_ids = list(range(1, size["vocab_size"], setting.stop_every)) if setting.stop_every else []
    engine = NativeEngine(model, RolloutConfig(setting.max_new_tokens), stop_ids)
    width = max(setting.lengths)
    ids = torch.tensor([[0] * (width - len(p)) + p for p in prompts], device=setting.device)
    mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts], device=setting.device)

    def peer() -> Any:
        with torch.no_grad():
            return model.generate(
                ids,
                attention_mask=mask,
                do_sample=True,
                top_k=0,
                max_new_tokens=setting.max_new_tokens,
                num_return_sequences=setting.k,
                eos_token_id=stop_ids or None,
                pad_token_id=0,
            )

    return lambda: engine.sample(prompts, setting.k), peer


def prompt_lengths(data: Path | None, n: int) -> tuple[int, ...]:
    """Tokens of n prompts: real ones, or 8 to 23 each."""
    if data is None:
        return tuple(torch.randint(8, 24, (n,), generator=torch.Generator().manual_seed(0)).tolist())
    with tempfile.TemporaryDirectory() as name:
        write_material(Path(name), real_prompts(data), "tiny", 16_000, LONGEST)
        return tuple(keep_rows(Path(name), n, LONGEST))


def seconds(call: Callable[[], Any], device: str) -> float:
    """How long a call takes, until the device is done."""
    start = time.perf_counter()
    call()
    if device != "cpu":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def peak_memory(setting: Setting, index: int) -> int:
    """Bytes that call number `index` of `build` adds at its peak; to be run in a process of its own."""
    torch.set_num_threads(1)
    call = build(setting)[index]
    if setting.device != "cpu":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        call()
        return torch.cuda.max_memory_allocated() - before
    Path("/proc/self/clear_refs").write_text("5")  # the peak is counted from here
    before = resident("VmRSS")
    call()
    return resident("VmHWM") - before


def resident(field: str) -> int:
    """Bytes of memory of this process, now (`VmRSS`) or at the peak (`VmHWM`); Linux only."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))


def measure(setting: Setting, repeats: int) -> dict[str, Any]:
    """Times and memory of one setting."""
    ours, peer = build(setting)
    ours(), peer()
    pairs = [(seconds(ours, setting.device), seconds(peer, setting.device)) for _ in range(repeats)]
    with multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
        memory = [pool.apply(peak_memory, (setting, index)) for index in (0, 1)]
    return {
        "benchmark": "rollout",
        "ours": statistics.median(a for a, _ in pairs),
        "peer": statistics.median(b for _, b in pairs),
        "ratio": statistics.median(b / a for a, b in pairs),
        "memory_ratio": memory[0] / max(1, memory[1]),
        "settings": setting._asdict(),
    }


def main() -> None:
    """Measures full-length responses, then such as stop."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=SIZES, default="tiny")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--data", type=Path)
    parser.add_argument("--prompts", type=int, default=64)
    parser.add_argument("--k", type=int, default=4)
    parser.add_argument("--max-new-tokens", type=int, default=32)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    torch.set_num_threads(1)
    lengths = prompt_lengths(args.data, args.prompts)
    for stop_every, name in ((0, "no response stops early"), (16, "one token in 16 stops a response")):
        setting = Setting(args.model, args.dtype, args.device, stop_every, lengths, args.k, args.max_new_tokens)
        result = measure(setting, args.repeats)
        print(
            f"{args.model} {args.dtype}, {name}: engine {result['ours']:.3f} s, generate {result['peer']:.3f} s, "
            f"{result['ratio']:.2f} times as fast, {result['memory_ratio']:.2f} of the memory"
        )
        print(json.dumps(result))


if __name__ == "__main__":
    main()
