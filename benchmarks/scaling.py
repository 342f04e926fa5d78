"""A DPO step in the shared layout beside the padded one, over mixes of lengths and numbers of responses.

    python -m benchmarks.scaling [--model 40m] [--vocab 16000] [--layers 4] [--threads 1] [--device cpu] [--repeats 3]
                                 [--attention sdpa|eager|flex_attention]

Both run the same groups of random tokens under bf16 autocast, forward and backward, in turn. What is compared is time of the
processor with one thread on a CPU, which a busy machine does not distort much, and time by the clock otherwise. Above 1 the
shared layout is faster. The log-probabilities of both must agree.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from benchmarks.material import SIZES
from lit_align.data.collate import padded
from lit_align.data.shared_layout import shared
from lit_align.groups import GroupBatch, TokenGroup
from lit_align.models import response_logps


class Mix(NamedTuple):
    """Lengths of one batch.

    Args:
        groups: Prompts.
        k: Responses of each.
        prompt: Tokens of a prompt, the median.
        response: Tokens of a response, the median.
        spread: Of the logarithm of both; 0 makes all alike.
    """

    groups: int
    k: int
    prompt: int
    response: int
    spread: float


MIXES = {
    "one response, all alike": Mix(8, 1, 128, 128, 0.0),
    "one response, ragged": Mix(16, 1, 60, 150, 0.8),
    "one response, a few tokens": Mix(64, 1, 12, 8, 0.4),
    "pairs of a few tokens": Mix(64, 2, 12, 8, 0.4),
    "pairs, short prompts": Mix(8, 2, 10, 200, 0.5),
    "pairs, as real ones": Mix(8, 2, 90, 230, 0.8),
    "pairs, long prompts": Mix(4, 2, 600, 60, 0.3),
    "pairs, long and alike": Mix(2, 2, 500, 500, 0.0),
    "4 responses": Mix(4, 4, 90, 150, 0.6),
    "9 responses": Mix(2, 9, 90, 150, 0.6),
}


def main() -> None:
    """Runs all mixes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="40m")
    parser.add_argument("--vocab", type=int, default=16_000)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--attention", choices=["sdpa", "eager", "flex_attention"], default="sdpa")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    torch.manual_seed(0)
    sizes = {**SIZES[given.model], "num_hidden_layers": given.layers}
    config = LlamaConfig(vocab_size=given.vocab, **sizes, max_position_embeddings=8192, pad_token_id=0)
    models = {name: LlamaForCausalLM(config).to(given.device) for name in ("shared", "padded")}
    models["shared"].set_attn_implementation(given.attention)
    models["padded"].load_state_dict(models["shared"].state_dict())
    clock = time.process_time if given.device == "cpu" and given.threads == 1 else time.perf_counter
    for name, mix in MIXES.items():
        groups = list(made_up(mix, given.vocab))
        batches = {"shared": shared(groups, 0, 1024).to(given.device), "padded": padded(groups, 0).to(given.device)}
        ratio, ours = compare(models, batches, given.repeats, clock)
        result = {"benchmark": "scaling", "mix": name, "ours": ours, "peer": "padded", "ratio": ratio}
        print(f"{name}: {ours:.3f} s, {ratio:.2f} times as fast as padded")
        print(json.dumps({**result, "settings": {**vars(given), **mix._asdict()}}), flush=True)


def made_up(mix: Mix, vocab: int, seed: int = 0) -> Iterator[TokenGroup]:
    """Groups of random tokens."""
    rng = random.Random(seed)

    def tokens(median: int) -> list[int]:
        return rng.choices(range(1, vocab), k=max(2, min(900, round(median * rng.lognormvariate(0, mix.spread)))))

    for row in range(mix.groups):
        yield TokenGroup(tokens(mix.prompt), [tokens(mix.response) for _ in range(mix.k)], row=row)


def compare(
    models: dict[str, Any], batches: dict[str, GroupBatch], repeats: int, clock: Callable[[], float]
) -> tuple[float, float]:
    """Median ratio padded / shared of a step's seconds, and the median seconds of shared; a step before that warms up."""
    times: list[dict[str, float]] = []
    for number in range(repeats + 1):
        taken, logps = {}, {}
        for name in ("shared", "padded") if number % 2 else ("padded", "shared"):
            model, batch = models[name], batches[name]
            began = clock()
            with torch.autocast(batch.targets.device.type, dtype=torch.bfloat16):
                values = response_logps(model, batch)
            values.sum().backward()  # type: ignore[no-untyped-call]
            logps[name] = values.detach().cpu()
            taken[name] = clock() - began
            model.zero_grad()
        off = float((logps["shared"] - logps["padded"]).abs().mean())
        if off > 0.02:
            raise SystemExit(f"The layouts differ by {off} nats a token.")
        times.append(taken)
    ratios = [taken["padded"] / taken["shared"] for taken in times[1:]]
    return statistics.median(ratios), statistics.median(taken["shared"] for taken in times[1:])


if __name__ == "__main__":
    main()
