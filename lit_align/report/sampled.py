"""Runs on mini_assistant, measured on samples: too many responses are possible for anything exact."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from torch import Tensor

from lit_align.data.mini_assistant import SPLITS, gold, skill_scores, skills
from lit_align.errors import UserError
from lit_align.feedback import Answer, sample_answers
from lit_align.feedback.implicit import LogProbReader
from lit_align.models import ModelConfig, load_policy, load_tokenizer
from lit_align.report.exact import reference_model, win_matrix
from lit_align.report.runs import Run
from lit_align.rollout import RolloutConfig

PER_PROMPT = 4
MAX_NEW_TOKENS = 32
SEED = 0


class Estimate(NamedTuple):
    """A mean over samples.

    Args:
        mean: Over prompts and the samples of each.
        std_error: Of drawing other responses to the same prompts.
    """

    mean: float
    std_error: float

    def __str__(self) -> str:
        """As people write it."""
        return f"{self.mean:.2f} ± {self.std_error:.2f}"


@dataclass(frozen=True)
class SampledResult:
    """What one policy does at temperature 1.

    Args:
        name: The run's name.
        method: Its LightningModule.
        gold: Gold score of its responses to the held-out prompts.
        kl: KL(policy || reference) on them, nats; None where there is no reference.
        skills: As `lit_align.data.mini_assistant.skill_scores` names them.
        scores: Gold of each response, `(X, PER_PROMPT)`.
    """

    name: str
    method: str
    gold: Estimate
    kl: Estimate | None
    skills: dict[str, float]
    scores: Tensor = field(repr=False, compare=False)

    def as_dict(self) -> dict[str, Any]:
        """What report.json holds."""
        estimates = {name: value and value._asdict() for name, value in (("gold", self.gold), ("kl", self.kl))}
        return {"name": self.name, "method": self.method, **estimates, "skills": self.skills}


def measure_samples(runs: Sequence[Run], on_progress: Callable[[str], None], remarks: list[str]) -> list[SampledResult]:
    """Samples from every policy of a group that trains on mini_assistant; the same samples every time.

    Args:
        runs: A group.
        on_progress: Called with what is measured next.
        remarks: Sentences on what is left out are added to it.
    """
    ours = [run for run in runs if run.trains_on_mini_assistant]
    policies = [run for run in ours if run.architectures and not run.is_reward_model]
    remarks += [
        f"{run.name} has no exported model yet: `fit` writes it when it is through, `lit-align export` at any time."
        for run in ours
        if not run.architectures
    ]
    if not policies:
        return []
    try:
        reference = reference_model(policies)
    except UserError as error:
        remarks.append(f"No KL on mini_assistant: {error}")
        reference = None
    results = []
    for run in policies:
        on_progress(f"sampling from {run.name}")
        results.append(_measure(run, reference))
    return results


def _measure(run: Run, reference: Path | None) -> SampledResult:
    config = ModelConfig(path=str(run.folder.model))
    held_out = SPLITS["heldout"]
    others = [item.prompt for item in skills() if item.prompt not in held_out]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        answers = sample_answers(
            load_policy(config),
            load_tokenizer(config),
            [*held_out, *others],
            PER_PROMPT,
            RolloutConfig(max_new_tokens=MAX_NEW_TOKENS),
        )
    assisting = answers[: PER_PROMPT * len(held_out)]
    scores = torch.tensor([gold(str(answer.prompt), answer.response) for answer in assisting])
    return SampledResult(
        name=run.name,
        method=run.method,
        gold=estimate(scores),
        kl=None if reference is None else estimate(_log_ratios(assisting, run.folder.model, reference)),
        skills=skill_scores([(str(answer.prompt), answer.response) for answer in answers]),
        scores=scores.view(-1, PER_PROMPT),
    )


def sampled_win_rates(results: Sequence[SampledResult]) -> dict[str, dict[str, float]]:
    """As `Comparison.win_rates`, over all pairs of responses to the same prompt."""
    return win_matrix({result.name: result.scores for result in results}, _share_won)


def _share_won(first: Tensor, second: Tensor) -> float:
    """`(X, n)` and `(X, m)` scores to the share of the X * n * m pairs that the first wins."""
    difference = first[:, :, None] - second[:, None, :]
    return float((difference.sign().mean() + 1) / 2)


def _log_ratios(answers: Sequence[Answer], policy: Path, reference: Path) -> Tensor:
    """By how much the policy finds each of its answers likelier than the reference does, nats, `(N,)`: its mean is the KL."""
    logps = [
        LogProbReader("compare", ModelConfig(path=str(folder)), batch_size=128, max_length=256).log_probs(answers)
        for folder in (policy, reference)
    ]
    return logps[0] - logps[1]


def estimate(values: Tensor) -> Estimate:
    """The mean of values that stand `PER_PROMPT` to a prompt, `(X * PER_PROMPT,)`."""
    by_prompt = values.double().view(-1, PER_PROMPT)
    variance = by_prompt.var(1).mean() / values.numel()
    return Estimate(by_prompt.mean().item(), variance.sqrt().item())


def print_sampled(results: Sequence[SampledResult], console: Console) -> None:
    """Prints one row a run."""
    table = Table(
        title="Sampled, on the held-out prompts and the skills of mini_assistant",
        caption="± standard error; KL from the reference in nats; copy to unknown: shares of right answers; toxic: share of "
        "responses with a toxic word, then the same where the prompt asks for respect.",
        title_justify="left",
        caption_justify="left",
        box=SIMPLE_HEAD,
        pad_edge=False,
        collapse_padding=True,
    )
    table.add_column("run", style="bold")
    table.add_column("method")
    names = {name: None for result in results for name in result.skills}
    for title in ("gold", "KL", *names):
        table.add_column(title.replace("_", " "), justify="right")
    for result in results:
        shares = (f"{result.skills[name]:.0%}" for name in names)
        table.add_row(
            result.name, result.method, str(result.gold), "–" if result.kl is None else str(result.kl), *shares
        )
    console.print(table)
