"""Does SPA beat DPO on the same labelled pairs, at equal KL, and what does each part of it add? On mini_assistant.

    python -m benchmarks.spa --policy runs/assistant/sft/model

The labelled pairs answer the prompts of the part `seed`, rounds are made on those of `train`, and everything is measured on
those that are held out: gold on samples, and the KL to the SFT model on the same samples, exact at each token. DPO on the pairs
alone is run for several numbers of passes; what it has at SPA's KL is interpolated between them. A seed is another draw of the
pairs and other random numbers; the SFT model is one. Every run is a line of `<out>/spa.jsonl` as soon as it is through, and is
not made twice. Prints Markdown tables.
"""

from __future__ import annotations

import argparse
import json
import logging
import statistics
import tempfile
import warnings
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import torch
from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything

from benchmarks.intervals import interval
from lit_align.data import PreferenceData, PromptData, padded
from lit_align.data.mini_assistant import SPLITS
from lit_align.feedback import Answer, Judge, MiniAssistantGold, RewardJudge, RewardModelReward, sample_answers
from lit_align.groups import TokenGroup, sum_by_response
from lit_align.losses import DPO as DPOLoss
from lit_align.losses import SelfRefinement
from lit_align.losses.kl import full_kl
from lit_align.methods import DPO, SPA, RewardModel, Schedule
from lit_align.methods.spa_stages import SeedPairs
from lit_align.models import ModelConfig, Sampling, load_policy, load_tokenizer, response_hidden
from lit_align.models.logprobs import head_logits
from lit_align.rollout import RolloutConfig

MAX_NEW_TOKENS = 26
ROUNDS = 3
REWARD_MODEL_PASSES = 6
SCHEDULE = Schedule(warmup=0.1, decay="cosine")

ARMS: dict[str, dict[str, Any]] = {
    "spa": {"refinement": SelfRefinement()},
    "expansion": {"refinement": None},
    "refinement": {"refinement": SelfRefinement(lambdas=(0.0,) * ROUNDS)},
    "previous": {"refinement": SelfRefinement(), "judging_reference": "previous"},
    "none": {"refinement": SelfRefinement(), "judging_reference": "none"},
    "reward_model": {"refinement": SelfRefinement()},
    "gold": {"refinement": None, "judge": RewardJudge(MiniAssistantGold())},
}
"""All of SPA; expansion alone, with smoothed labels; other judging references; other judges."""

Point = dict[str, float]
Run = tuple[str, int]
"""An arm, or `seed_only/<passes>`, and a seed."""


def main() -> None:
    """Runs what is missing, and reports."""
    given = arguments()
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    file = given.out / "spa.jsonl"
    measure = Measure(given.policy, given.samples)
    for name in (*(f"seed_only/{passes}" for passes in given.passes), *given.arms):
        for seed in given.seeds:
            if (name, seed) in read(file, given):
                continue
            passes = name.partition("/")[2]
            points = seed_only(given, seed, int(passes), measure) if passes else spa(given, seed, name, measure)
            file.parent.mkdir(parents=True, exist_ok=True)
            with file.open("a") as lines:
                settings = settings_of(name, given)
                lines.write(json.dumps({"settings": settings, "name": name, "seed": seed, "points": points}) + "\n")
            print(name, seed, [(round(point["kl"], 3), round(point["gold"], 3)) for point in points], flush=True)
    report({run: points for run, points in read(file, given).items() if run[1] in given.seeds})


def arguments() -> argparse.Namespace:
    """What the command line says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--policy", default="runs/assistant/sft/model", help="The exported SFT model.")
    parser.add_argument("--out", type=Path, default=Path("runs/spa"))
    parser.add_argument("--seeds", nargs="+", type=int, default=list(range(100, 105)))
    parser.add_argument("--arms", nargs="+", default=list(ARMS), choices=list(ARMS))
    parser.add_argument(
        "--passes", nargs="+", type=int, default=[2, 4, 6, 8, 12], help="Lengths of DPO on the pairs alone."
    )
    parser.add_argument("--pairs", type=int, default=200, help="Labelled pairs.")
    parser.add_argument("--epochs", type=int, default=3, help="SPA's passes over them.")
    parser.add_argument("--prompts", type=int, default=192, help="Prompts of each of the three rounds; there are 576.")
    parser.add_argument("--beta", type=float, default=0.1)
    parser.add_argument("--lr", type=float, default=3e-4)
    parser.add_argument("--temperature", type=float, default=1.0, help="Of the rounds' answers.")
    parser.add_argument("--samples", type=int, default=8, help="Answers to each of the 192 held-out prompts.")
    return parser.parse_args()


def settings_of(name: str, given: argparse.Namespace) -> dict[str, Any]:
    """What a run depends on, beside its name and seed."""
    of_all = {key: getattr(given, key) for key in ("policy", "samples", "pairs", "beta", "lr")}
    of_rounds = {key: getattr(given, key) for key in ("epochs", "prompts", "temperature")}
    return of_all | of_rounds if name in ARMS else of_all


def read(file: Path, given: argparse.Namespace) -> dict[Run, list[Point]]:
    """The runs of these settings that are through."""
    rows = map(json.loads, file.read_text().splitlines() if file.exists() else [])
    return {
        (row["name"], row["seed"]): row["points"] for row in rows if row["settings"] == settings_of(row["name"], given)
    }


class Measure:
    """Gold and KL of a policy on the held-out prompts, always with the same random numbers.

    Args:
        path: The SFT model.
        samples: Answers to each prompt.
    """

    def __init__(self, path: str, samples: int) -> None:
        config = ModelConfig(path)
        self.tokenizer = load_tokenizer(config)
        self.sft = load_policy(config).eval()
        self.samples = samples

    @torch.no_grad()
    def __call__(self, policy: Any) -> Point:
        """Means over all samples, of the policy as it is."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            config = RolloutConfig(MAX_NEW_TOKENS)
            answers = sample_answers(policy, self.tokenizer, list(SPLITS["heldout"]), self.samples, config)
        return {
            "gold": float(MiniAssistantGold()(answers).total.mean()),
            "kl": statistics.mean(self._kl(policy, answers[i : i + 192]) for i in range(0, len(answers), 192)),
            "finished": statistics.mean(answer.finished for answer in answers),
        }

    def _kl(self, policy: Any, answers: list[Answer]) -> float:
        """Mean over answers of the summed KL of the next token, nats: unbiased, with far less variance than k1."""
        batch = padded([TokenGroup(a.prompt_ids, [a.response_ids]) for a in answers], self.tokenizer.pad_token_id)
        logits = [head_logits(model, response_hidden(model, batch)) for model in (policy, self.sft)]
        return float(sum_by_response(full_kl(*logits), batch.response_index, batch.n_responses).mean())


class Rounds(Callback):
    """Measures the policy when each round is through, with what was logged of the round's labels.

    Args:
        measure: What it is worth.
    """

    def __init__(self, measure: Measure) -> None:
        self.measure = measure
        self.points: list[Point] = []
        self._of_round: Point = {}

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """At the first batch of a round, before its first step: the round before is through."""
        assert isinstance(pl_module, SPA)
        if pl_module.round > len(self.points) + 1:
            self.points.append(self.measure(pl_module.policy) | self._of_round)
        self._of_round = pl_module.round_metrics

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The last round is through."""
        assert isinstance(pl_module, SPA)
        self.points.append(self.measure(pl_module.policy) | self._of_round)


def pairs(given: argparse.Namespace, seed: int) -> PreferenceData:
    """The labelled pairs."""
    return PreferenceData("mini_assistant:seed", max_rows=given.pairs, batch_size=32, seed=seed)


def seed_only(given: argparse.Namespace, seed: int, passes: int, measure: Measure) -> list[Point]:
    """DPO on the labelled pairs alone."""
    seed_everything(seed, verbose=False)
    module = DPO(ModelConfig(given.policy), DPOLoss(given.beta), optimizer=adamw(given.lr), lr_scheduler=SCHEDULE)
    fit(module, pairs(given, seed), passes)
    return [measure(module.policy)]


def spa(given: argparse.Namespace, seed: int, arm: str, measure: Measure) -> list[Point]:
    """SPA; what it is worth after each round."""
    with tempfile.TemporaryDirectory() as folder:
        judge: dict[str, Judge] = {"judge": reward_model(given, seed, folder)} if arm == "reward_model" else {}
        seed_everything(seed, verbose=False)
        module = SPA(
            ModelConfig(given.policy),
            [given.prompts] * ROUNDS,
            SeedPairs(pairs(given, seed), given.epochs),
            given.beta,
            rollout=RolloutConfig(MAX_NEW_TOKENS, Sampling(temperature=given.temperature)),
            gold=MiniAssistantGold(),
            keep_rounds=False,
            optimizer=adamw(given.lr),
            lr_scheduler=SCHEDULE,
            **(ARMS[arm] | judge),
        )
        watch = Rounds(measure)
        prompts = PromptData("mini_assistant:train", max_rows=ROUNDS * given.prompts, batch_size=32, seed=seed)
        fit(module, prompts, 1, watch)
    return watch.points


def reward_model(given: argparse.Namespace, seed: int, folder: str) -> Judge:
    """A reward model trained on the labelled pairs, as a judge."""
    seed_everything(seed, verbose=False)
    module = RewardModel(ModelConfig(given.policy), optimizer=adamw(given.lr), lr_scheduler=SCHEDULE)
    fit(module, pairs(given, seed), REWARD_MODEL_PASSES)
    module.export(f"{folder}/model")
    return RewardJudge(RewardModelReward(ModelConfig(f"{folder}/model")))


def adamw(lr: float) -> Callable[[Any], torch.optim.Optimizer]:
    """The optimiser of every run."""
    return lambda parameters: torch.optim.AdamW(parameters, lr=lr, weight_decay=0.0)


def fit(module: LightningModule, data: Any, epochs: int, *callbacks: Callback) -> None:
    """Trains, and leaves nothing behind."""
    with tempfile.TemporaryDirectory() as folder:
        Trainer(
            accelerator="cpu",
            max_epochs=epochs,
            gradient_clip_val=1.0,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            default_root_dir=folder,
            callbacks=list(callbacks),
        ).fit(module, data)


class Row(NamedTuple):
    """An arm after a round, for one seed.

    Args:
        kl: Nats.
        gold: Of the policy.
        right: Share of the round's labels that gold agrees with, its ties as a half.
        alone: Gold of DPO on the pairs alone at that KL; None where that is beyond its longest run.
    """

    kl: float
    gold: float
    right: float
    alone: float | None


def report(known: dict[Run, list[Point]]) -> None:
    """DPO on the pairs alone by passes, and each arm after each round, beside it at equal KL."""
    print("\n| passes over the pairs alone | seeds | KL | gold |\n|---|---|---|---|")
    for passes in sorted({int(name.partition("/")[2]) for name, _ in known if name not in ARMS}):
        points = [found[0] for (of, _), found in known.items() if of == f"seed_only/{passes}"]
        kl, gold = (interval([point[key] for point in points]) for key in ("kl", "gold"))
        print(f"| {passes} | {len(points)} | {kl} | {gold} |")
    print("\n| arm | round | seeds | labels right | KL | gold | pairs alone, at that KL | difference |\n|" + "---|" * 8)
    for arm in [arm for arm in ARMS if arm in {name for name, _ in known}]:
        for number in range(ROUNDS):
            rows = [row(known, seed, points[number]) for (of, seed), points in known.items() if of == arm]
            right, kl, gold = (statistics.mean(getattr(row, key) for row in rows) for key in ("right", "kl", "gold"))
            within = [(row.gold, row.alone) for row in rows if row.alone is not None]
            print(f"| {arm} | {number + 1} | {len(rows)} | {right:.3f} | {kl:.2f} | {gold:.2f} | ", end="")
            if len(within) == len(rows):
                alone = statistics.mean(best for _, best in within)
                print(f"{alone:.2f} | {interval([gold - best for gold, best in within], '+')} |")
            else:
                print(f"beyond it for {len(rows) - len(within)} | – |")


def row(known: dict[Run, list[Point]], seed: int, point: Point) -> Row:
    """A point of an arm beside DPO on the pairs alone."""
    curve = sorted(
        (found[0]["kl"], found[0]["gold"]) for (name, of), found in known.items() if of == seed and name not in ARMS
    )
    kl, alone = point["kl"], None
    for (low, gold_low), (high, gold_high) in pairwise(curve):
        if low <= kl <= high:
            alone = gold_low + (gold_high - gold_low) * (kl - low) / (high - low)
    return Row(kl, point["gold"], point["gold/agreement"], alone)


if __name__ == "__main__":
    main()
