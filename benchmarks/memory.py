"""What a DPO step holds beyond weights, gradients and the optimiser's state, as the vocabulary grows.

    python -m benchmarks.memory [--model 40m] [--batch 4] [--layout shared] [--vocab 4000 16000 64000 256000]

For each vocabulary a process of its own takes two steps on the same pairs under bf16-mixed and says how much more than before
the second one it held at most, on Linux. `logits` is what logits of all response tokens, in float32, would take.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

import torch

MIB = 2**20


def main() -> None:
    """Runs one process for each vocabulary."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="40m")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--layout", choices=["shared", "padded"], default="shared")
    parser.add_argument("--vocab", type=int, nargs="+", default=[4_000, 16_000, 64_000, 256_000])
    parser.add_argument("--only", type=int, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.only is not None:
        measure(given.model, given.only, given.batch, given.layout)
        return
    for vocab in given.vocab:
        command = [sys.executable, "-m", "benchmarks.memory", *sys.argv[1:], "--only", str(vocab)]
        found = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        print(
            f"vocabulary {vocab}: {found['beyond']:.0f} MiB beyond weights, gradients and optimiser, "
            f"{found['head']:.0f} of it the head in bf16 and its gradient; logits would take {found['logits']:.0f} MiB"
        )
        print(json.dumps({"benchmark": "memory", **found, "settings": {**vars(given), "vocab": vocab}}))


def measure(size: str, vocab: int, batch_size: int, layout: str) -> None:
    """Two steps of the loss on pairs with lengths like real ones; prints the most memory of the second."""
    from transformers import LlamaConfig, LlamaForCausalLM

    from benchmarks.material import SIZES
    from benchmarks.paired import resident
    from benchmarks.scaling import MIXES, made_up
    from lit_align.data.collate import padded
    from lit_align.data.shared_layout import shared
    from lit_align.models import response_logps

    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(vocab_size=vocab, **SIZES[size], max_position_embeddings=8192, pad_token_id=0))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=True)
    groups = list(made_up(MIXES["pairs, as real ones"]._replace(groups=batch_size), 4000))
    batch = shared(groups, 0, 1024) if layout == "shared" else padded(groups, 0)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    for _ in range(2):
        Path("/proc/self/clear_refs").write_text("5")  # The high-water mark is lowered to what is held now.
        before = resident()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            sums = batch.weighted_sums(response_logps(model, batch))
        torch.nn.functional.logsigmoid(0.1 * (sums[1::2] - sums[::2])).sum().backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        most = high_water_mark()
    head = 2 * 2 * vocab * model.config.hidden_size / MIB
    print(json.dumps({"beyond": most - before, "head": head, "logits": 4 * vocab * len(batch.targets) / MIB}))


def high_water_mark() -> float:
    """The most that this process has held since it was last lowered, MiB."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) / 1024
    raise RuntimeError("There is no VmHWM in /proc/self/status.")


if __name__ == "__main__":
    main()
