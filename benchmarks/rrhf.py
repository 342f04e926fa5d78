"""Does RRHF beat fine-tuning on the best candidate, at equal KL? Does the KL term keep online RRHF from exploiting its reward?

    python -m benchmarks.rrhf --policy runs/quickstart/sft/model

On mini_instruct, so gold and KL are exact. `sft` and `rrhf`: the SFT model answers 256 prompts, 8 times each, and gold scores
the answers. RRHF trains on all of them, SFT on the best of each, for several lengths each: RRHF is compared with what SFT
has at the same KL, interpolated between its lengths. Both are also asked to rank: how often p, the log-probability per token,
orders two responses of the reference as gold does; equals in gold count half. `online`: responses are sampled anew
at every step and ranked by the proxy that is misspecified on purpose (`lit_align.feedback.LinearProxy`), with and without KL.

A seed is other candidates and other random numbers; the SFT model is one. Every run is a line of `<out>/rrhf.jsonl` as soon as
it is through, and is not made twice. Prints Markdown tables.
"""

from __future__ import annotations

import argparse
import json
import logging
import statistics
import tempfile
import warnings
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import torch
from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything

from benchmarks.intervals import interval
from lit_align.data import PromptData, RankingData, SFTData
from lit_align.data.mini_instruct import MAX_WORDS, PROMPTS, WORDS, enumerated_policy, gold_scores
from lit_align.exact import expected_reward, kl_divergence, pair_accuracy, word_table
from lit_align.feedback import LinearProxy, MiniInstructGold, MissingEOSPenalty, WeightedSum, sample_answers
from lit_align.methods import RRHF, SFT, Schedule
from lit_align.methods.rrhf import Candidates
from lit_align.models import ModelConfig, load_policy, load_tokenizer
from lit_align.rollout import RolloutConfig

ROWS = 256
RESPONSES = 8
BATCH = 64
STEPS = {"sft": (24, 48, 96, 192, 288), "rrhf": (96, 192)}
ONLINE_STEPS = (16, 32, 64, 128)
ONLINE_BATCH = 32
ONLINE_RESPONSES = 4
KL_COEFS = (0.0, 0.5)
NO_NOISE = 1e4
"""What gold is multiplied by so that labels are certain: its differences are multiples of 0.05."""

Point = dict[str, float]
Run = tuple[str, int]
"""A name and a seed."""


def main() -> None:
    """Runs what is missing, and reports."""
    given = arguments()
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    file = given.out / "rrhf.jsonl"
    measure = Measure(given.policy)
    for seed in given.seeds:
        for name in given.parts:
            if (name, seed) in read(file):
                continue
            coefficient = name.partition("kl=")[2]
            points = online(measure, seed, float(coefficient)) if coefficient else offline(measure, seed, name)
            file.parent.mkdir(parents=True, exist_ok=True)
            with file.open("a") as lines:
                lines.write(json.dumps({"name": name, "seed": seed, "points": points}) + "\n")
            print(name, seed, {key: round(value, 3) for key, value in points[-1].items()}, flush=True)
    report(read(file), measure)


def arguments() -> argparse.Namespace:
    """What the command line says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parts = [*STEPS, *(f"online, kl={coefficient}" for coefficient in KL_COEFS)]
    parser.add_argument("--policy", default="runs/quickstart/sft/model", help="An exported SFT model.")
    parser.add_argument("--out", type=Path, default=Path("runs/rrhf"))
    parser.add_argument("--seeds", nargs="+", type=int, default=list(range(100, 105)))
    parser.add_argument("--parts", nargs="+", default=parts, choices=parts)
    return parser.parse_args()


def read(file: Path) -> dict[Run, list[Point]]:
    """The runs that are through."""
    lines = file.read_text().splitlines() if file.exists() else []
    return {(row["name"], row["seed"]): row["points"] for row in map(json.loads, lines)}


class Measure:
    """What a policy is worth, exactly.

    Args:
        path: The SFT model: the start of every run, and what KL is measured from.
    """

    def __init__(self, path: str) -> None:
        self.config = ModelConfig(path)
        self.tokenizer = load_tokenizer(self.config)
        self.reference = enumerated_policy(load_policy(self.config).eval(), self.tokenizer).logps
        self.proxy = LinearProxy().table()
        self.tokens = (word_table(len(WORDS), MAX_WORDS) >= 0).sum(1) + 1  # EOS is one

    def __call__(self, policy: Any) -> Point:
        """Means over the prompts."""
        found = enumerated_policy(policy, self.tokenizer)
        return {**self.of(found.logps), "leaked": found.leaked.mean().item()}

    def of(self, logps: torch.Tensor) -> Point:
        """The same of log-probabilities, `(8, S)`."""
        agreement = pair_accuracy(self.reference, NO_NOISE * gold_scores(), logps / self.tokens)
        return {
            "kl": kl_divergence(logps, self.reference).mean().item(),
            "gold": expected_reward(logps, gold_scores()).mean().item(),
            "proxy": expected_reward(logps, self.proxy).mean().item(),
            "agreement": agreement.mean().item(),
        }


class Watch(Callback):
    """Measures the policy at some steps.

    Args:
        measure: What it is worth.
        steps: When.
    """

    def __init__(self, measure: Measure, steps: Sequence[int]) -> None:
        self.measure = measure
        self.steps = steps
        self.points: list[Point] = []

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """After an optimiser step."""
        if trainer.global_step in self.steps:
            self.points.append({"step": trainer.global_step, **self.measure(pl_module.policy)})


def offline(measure: Measure, seed: int, name: str) -> list[Point]:
    """RRHF on all candidates, or SFT on the best of each prompt; worth after each number of steps."""
    with tempfile.TemporaryDirectory() as folder:
        file = f"{folder}/rows.jsonl"
        with open(file, "w") as lines:
            lines.writelines(json.dumps(row) + "\n" for row in candidates(measure, seed, best_only=name == "sft"))
        seed_everything(seed, verbose=False)
        if name == "sft":
            module: LightningModule = SFT(measure.config, optimizer=adamw, lr_scheduler=CONSTANT)
            data: Any = SFTData(file, batch_size=BATCH, seed=seed)
        else:
            module = RRHF(measure.config, optimizer=adamw, lr_scheduler=CONSTANT)
            data = RankingData(file, batch_size=BATCH, seed=seed)
        return fit(module, data, Watch(measure, STEPS[name]))


def candidates(measure: Measure, seed: int, best_only: bool) -> list[dict[str, Any]]:
    """Rows of prompts with the responses that ended, and their gold scores; or with the best response alone."""
    seed_everything(seed, verbose=False)
    prompts = list(PROMPTS) * (ROWS // len(PROMPTS))
    policy = load_policy(measure.config).eval()
    answers = sample_answers(policy, measure.tokenizer, prompts, RESPONSES, RolloutConfig(MAX_WORDS + 1))
    scores = MiniInstructGold()(answers).total.tolist()
    rows: list[dict[str, Any]] = []
    for start in range(0, len(answers), RESPONSES):
        places = [place for place in range(start, start + RESPONSES) if answers[place].finished]
        found = {answers[place].response: scores[place] for place in places if answers[place].response}
        prompt, best = answers[start].prompt, max(found, key=found.__getitem__)
        known = {"completion": best} if best_only else {"responses": list(found), "scores": list(found.values())}
        rows.append({"prompt": prompt, **known})
    return rows


def online(measure: Measure, seed: int, kl_coef: float) -> list[Point]:
    """RRHF on its own responses, new at every step, ranked by the proxy; worth after each number of steps."""
    seed_everything(seed, verbose=False)
    reward = WeightedSum({"proxy": LinearProxy(), "cut": MissingEOSPenalty(5.0)}, {"proxy": 1.0, "cut": 1.0})
    module = RRHF(
        measure.config,
        candidates=Candidates(reward, RolloutConfig(MAX_WORDS + 1), ONLINE_RESPONSES, refresh=1, kl_coef=kl_coef),
        optimizer=adamw,
        lr_scheduler=CONSTANT,
    )
    rows = ONLINE_BATCH * max(ONLINE_STEPS)
    data = PromptData("mini_instruct", max_rows=rows, batch_size=ONLINE_BATCH, seed=seed)
    return fit(module, data, Watch(measure, ONLINE_STEPS))


CONSTANT = Schedule(warmup=0.02, decay="constant")
"""So that a run's worth after some steps is that of a run of so many steps."""


def adamw(parameters: Any) -> torch.optim.Optimizer:
    """The optimiser of every run."""
    return torch.optim.AdamW(parameters, lr=1e-3, weight_decay=0.0)


def fit(module: LightningModule, data: Any, watch: Watch) -> list[Point]:
    """Trains, and leaves nothing behind."""
    with tempfile.TemporaryDirectory() as folder:
        Trainer(
            accelerator="cpu",
            max_epochs=-1,
            max_steps=max(watch.steps),
            gradient_clip_val=1.0,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            default_root_dir=folder,
            callbacks=[watch],
        ).fit(module, data)
    return watch.points


class AtEqualKL(NamedTuple):
    """RRHF beside SFT of one seed."""

    kl: float
    rrhf: float
    sft: float


def report(known: dict[Run, list[Point]], measure: Measure) -> None:
    """Each run by steps, and RRHF beside SFT at equal KL."""
    start = measure.of(measure.reference)
    print(f"\nThe SFT model: gold {start['gold']:.3f}, agreement {start['agreement']:.3f}\n")
    print("| run | steps | seeds | KL | gold | proxy | agreement | leaked |\n|---|---|---|---|---|---|---|---|")
    for name in dict.fromkeys(name for name, _ in known):
        runs = [points for (of, _), points in known.items() if of == name]
        for points in zip(*runs, strict=True):
            cells = [
                interval([point[key] for point in points]) for key in ("kl", "gold", "proxy", "agreement", "leaked")
            ]
            print(f"| {name} | {points[0]['step']} | {len(points)} | {' | '.join(cells)} |")
    print("\n| RRHF's steps | seeds | KL | gold, RRHF | gold, SFT on the best at that KL | difference |")
    print("|---|---|---|---|---|---|")
    for number, steps in enumerate(STEPS["rrhf"]):
        rows = at_equal_kl(known, number)
        if rows:
            kl, rrhf, sft = (statistics.mean(column) for column in zip(*rows, strict=True))
            gain = interval([row.rrhf - row.sft for row in rows], "+")
            print(f"| {steps} | {len(rows)} | {kl:.2f} | {rrhf:.3f} | {sft:.3f} | {gain} |")
    pairs = [
        (known["rrhf", seed], known["sft", seed]) for name, seed in known if name == "rrhf" and ("sft", seed) in known
    ]
    if pairs:
        gains = [rrhf[-1]["agreement"] - max(point["agreement"] for point in sft) for rrhf, sft in pairs]
        print(f"\nRRHF's agreement in the end less the highest of SFT's: {interval(gains, '+')}")


def at_equal_kl(known: dict[Run, list[Point]], number: int) -> list[AtEqualKL]:
    """Each seed's RRHF after so many steps, and SFT at its KL; without the seeds whose KL is beyond SFT's lengths."""
    found = []
    for (name, seed), points in known.items():
        if name != "rrhf" or ("sft", seed) not in known:
            continue
        kl, gold = points[number]["kl"], points[number]["gold"]
        for low, high in pairwise(sorted(known["sft", seed], key=lambda point: point["kl"])):
            if low["kl"] <= kl <= high["kl"]:
                share = (kl - low["kl"]) / (high["kl"] - low["kl"])
                found.append(AtEqualKL(kl, gold, low["gold"] + share * (high["gold"] - low["gold"])))
    return found


if __name__ == "__main__":
    main()
