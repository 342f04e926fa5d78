"""Which pairs to label: how good a policy a few hundred labels make, when pairs are chosen at random or by an ensemble.

    python -m benchmarks.active

On `mini_instruct`, where everything but the labels is exact. Each round shows the labeller ten prompts with a hundred fresh
responses each, drawn from the demonstrator; the strategy picks ten pairs among them, which are labelled by a Bradley-Terry
model on gold, as the task's own preferences are; then the ensemble is fitted anew to all labels. What is measured is the gold
score, exact, of the policies that maximise the ensemble's mean reward at some KLs from the demonstrator.

The reward models are linear in features of a response (`features`): of each word whether it occurs and how often, counts by
part of speech, length and repeats. Gold is linear in them too, so it can be learned, and is one of very many functions that
can. Thirty members are fitted by logistic regression, each to labels weighted by its own exponential draws, and pulled towards
its own draw from the prior (Osband et al. 2018, 1806.03335): they differ where labels say little.

Every run is a line of `<out>/active.jsonl` as soon as it is through, and is not made twice. Prints Markdown tables.
"""

from __future__ import annotations

import argparse
import json
from functools import cache
from pathlib import Path
from typing import get_args

import torch
from torch import Tensor

from benchmarks.intervals import interval
from lit_align.data.mini_instruct import MAX_WORDS, PROMPTS, WORDS, demonstrator_logps, gold_scores
from lit_align.data.mini_instruct.task import FILLER, FUNCTION, NEGATIVE, POLITE, POSITIVE, TOPICS, question
from lit_align.exact import Frontier, expected_reward, optimal_policy, word_table
from lit_align.feedback.selection import Strategy, select_pairs

MEMBERS = 30
PROMPTS_SHOWN = 10
RESPONSES_SHOWN = 100
LABELS_A_ROUND = 10
PRIOR_SCALE = 1.0
"""Standard deviation of a weight before any label."""
NEWTON_STEPS = 50
CONVERGED = 1e-6
"""Newton's decrement at which a fit ends: the loss is then within its square of the least."""
REPORTED = (50, 100, 200, 400)
KLS = (4.0, 5.5, 7.0)
"""How far the policy may go from the demonstrator, nats."""


def main() -> None:
    """Runs what is missing, and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", nargs="+", type=int, default=list(range(100, 108)))
    parser.add_argument("--strategies", nargs="+", default=list(get_args(Strategy)), choices=get_args(Strategy))
    parser.add_argument("--out", type=Path, default=Path("runs/active"))
    given = parser.parse_args()
    torch.set_num_threads(1)
    given.out.mkdir(parents=True, exist_ok=True)
    file = given.out / "active.jsonl"
    for seed in given.seeds:
        for strategy in given.strategies:
            if (strategy, seed) in read(file):
                continue
            gold = run(strategy, seed)
            with file.open("a") as lines:
                lines.write(json.dumps({"strategy": strategy, "seed": seed, "gold": gold}) + "\n")
            print(strategy, seed, gold, flush=True)
    report(read(file), given)


def read(file: Path) -> dict[tuple[str, int], list[list[float]]]:
    """The runs that are through, by strategy and seed: gold by number of labels and by KL."""
    lines = file.read_text().splitlines() if file.exists() else []
    return {(row["strategy"], row["seed"]): row["gold"] for row in map(json.loads, lines)}


def report(known: dict[tuple[str, int], list[list[float]]], given: argparse.Namespace) -> None:
    """Means with 95 % intervals over the seeds, and Thompson's less uniform's with as many labels and with the next number."""
    frontier = Frontier(demonstrator_logps(), gold_scores())
    rows = {name: [known[name, seed] for seed in given.seeds] for name in given.strategies}
    for k, kl in enumerate(KLS):
        print(f"\nKL {kl}: at most {frontier.best_reward(kl):.2f}\n")
        print(f"| labels | {' | '.join(rows)} |\n|---|{'---|' * len(rows)}")
        for number, labels in enumerate(REPORTED):
            cells = [interval([gold[number][k] for gold in of]) for of in rows.values()]
            print(f"| {labels} | {' | '.join(cells)} |")
        if {"uniform", "thompson"} <= rows.keys():
            print("\n| thompson's labels | uniform's labels | difference in gold |\n|---|---|---|")
            numbers = range(len(REPORTED))
            for ours, theirs in [(i, j) for i in numbers for j in (i, i + 1) if j in numbers]:
                pairs = zip(rows["thompson"], rows["uniform"], strict=True)
                gains = [thompson[ours][k] - uniform[theirs][k] for thompson, uniform in pairs]
                print(f"| {REPORTED[ours]} | {REPORTED[theirs]} | {interval(gains, '+')} |")


def run(strategy: Strategy, seed: int) -> list[list[float]]:
    """Gold after each number of labels in `REPORTED`, at each of `KLS`."""
    generator = torch.Generator().manual_seed(seed)
    probs = demonstrator_logps().exp()
    differences: list[Tensor] = []
    anchors = PRIOR_SCALE * torch.randn(MEMBERS, features().shape[2], generator=generator, dtype=torch.float64)
    label_weights = torch.empty(MEMBERS, 0, dtype=torch.float64)
    members = anchors
    reached = []
    while len(differences) < max(REPORTED):
        prompts = torch.randint(len(PROMPTS), (PROMPTS_SHOWN,), generator=generator)
        shown = torch.multinomial(probs[prompts], RESPONSES_SHOWN, generator=generator)
        prompt, response = prompts.repeat_interleave(RESPONSES_SHOWN), shown.flatten()
        rewards = members @ features()[prompt, response].T
        group_index = torch.arange(PROMPTS_SHOWN).repeat_interleave(RESPONSES_SHOWN)
        pairs = select_pairs(strategy, rewards, group_index, LABELS_A_ROUND, generator)
        for i, j in pairs.tolist():
            gap = gold_scores()[prompt[i], response[i]] - gold_scores()[prompt[j], response[j]]
            first_wins = torch.rand((), generator=generator, dtype=torch.float64) < gap.sigmoid()
            difference = features()[prompt[i], response[i]] - features()[prompt[j], response[j]]
            differences.append(difference if first_wins else -difference)
        drawn = torch.rand(MEMBERS, LABELS_A_ROUND, generator=generator, dtype=torch.float64)
        label_weights = torch.cat([label_weights, -drawn.log()], dim=1)
        members = fitted(torch.stack(differences), label_weights, anchors, members)
        if len(differences) in REPORTED:
            reached.append(gold_at(members.mean(0)))
    return reached


def fitted(differences: Tensor, label_weights: Tensor, anchors: Tensor, start: Tensor) -> Tensor:
    """Weights w that minimise -sum_p c_p log sigmoid(d_p w) + |w - anchor|^2 / (2 scale^2), for each member.

    By Newton's method, whose steps are damped by 1 / (1 + Newton decrement): far from the minimum a whole step may go astray.

    Args:
        differences: Features of the better response less those of the worse one, `(P, D)`.
        label_weights: What each label counts for each member, `(E, P)`.
        anchors: Where each member is pulled, `(E, D)`.
        start: The members as they were, `(E, D)`.

    Returns:
        `(E, D)`.
    """
    ridge = torch.eye(anchors.shape[1], dtype=anchors.dtype) / PRIOR_SCALE**2
    weights = start
    for _ in range(NEWTON_STEPS):
        lost = (-weights @ differences.T).sigmoid()
        gradient = (label_weights * lost) @ differences - (weights - anchors) / PRIOR_SCALE**2
        curvature = torch.einsum("ep,pi,pj->eij", label_weights * lost * (1 - lost), differences, differences) + ridge
        step = torch.linalg.solve(curvature, gradient)
        decrement = (step * gradient).sum(1, keepdim=True).sqrt()
        weights = weights + step / (1 + decrement)
        if decrement.max() < CONVERGED:
            break
    return weights


def gold_at(weights: Tensor) -> list[float]:
    """Gold, over all responses and exactly, of the policies that have the most of a reward at each of `KLS`; weights `(D,)`."""
    rewards = features() @ weights
    frontier = Frontier(demonstrator_logps(), rewards)
    betas = [
        frontier.beta_at(min(kl, 0.999 * frontier.max_kl)) for kl in KLS
    ]  # further than its best response nobody goes
    policies = [optimal_policy(demonstrator_logps(), rewards, beta) for beta in betas]
    return [expected_reward(policy, gold_scores()).mean().item() for policy in policies]


@cache
def features() -> Tensor:
    """Features of every response to every prompt, `(8, 54240, D)` float64."""
    table = word_table(len(WORDS), MAX_WORDS)
    return torch.stack([_features(table, *question(prompt)) for prompt in PROMPTS])


def _features(table: Tensor, topic: str, asked: bool) -> Tensor:
    """Features of rows of word numbers, -1 after the last word: `(S, 4)` to `(S, D)`."""

    def count(*words: str) -> Tensor:
        return torch.isin(table, torch.tensor([WORDS.index(word) for word in words])).sum(1)

    repeats = ((table[:, 1:] == table[:, :-1]) & (table[:, 1:] >= 0)).sum(1)
    length = (table >= 0).sum(1)
    off_topic = count(*TOPICS) - count(topic)
    polite = count(*POLITE)
    of_words = [count(word) for word in WORDS]
    by_kind = [count(topic), off_topic, polite * asked, polite * (not asked), repeats]
    by_kind += [count(*kind) for kind in (POSITIVE, NEGATIVE, FUNCTION, FILLER)]
    at_least = [values >= n for values in (*by_kind, length) for n in (1, 2, 3, 4)]
    present = [values > 0 for values in of_words]
    stacked = torch.stack([*of_words, *by_kind, *present, *at_least], dim=1).double()
    return stacked


if __name__ == "__main__":
    main()
