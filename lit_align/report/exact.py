"""Runs on mini_instruct, measured exactly: every response of every prompt is enumerated, and nothing is sampled."""

from __future__ import annotations

import copy
import warnings
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor

from lit_align.data.mini_instruct import MAX_WORDS, PROMPTS, WORDS, demonstrator_logps, enumerated_policy, gold_scores
from lit_align.errors import UserError
from lit_align.exact import Frontier, FrontierPoint, expected_reward, kl_divergence, pair_accuracy, win_rate
from lit_align.models import ModelConfig, load_policy, load_reward_model, load_tokenizer
from lit_align.models.logprobs import trunk
from lit_align.report.runs import Run

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

T = TypeVar("T")

SMALLEST_KL = 0.05
"""Nats. Below it, efficiency divides one small number by another, and says nothing."""

CHUNK = 2048
"""Responses that a reward model reads at once."""


@dataclass(frozen=True)
class Result:
    """What one run reached, averaged over the prompts; None where it does not apply.

    Args:
        name: The run's name.
        method: Its LightningModule.
        gold: Expected gold score of its policy.
        kl: KL(policy || reference), nats.
        frontier_gold: The most expected gold that any policy can have at this KL.
        efficiency: Share of the gain over the reference possible at this KL; None under 0.05 nats.
        win_rate: Probability that its response has more gold than the reference's, ties as half a win.
        accuracy: Of a reward model: how often it agrees with the label of a pair drawn as the training pairs are.
    """

    name: str
    method: str
    gold: float | None = None
    kl: float | None = None
    frontier_gold: float | None = None
    efficiency: float | None = None
    win_rate: float | None = None
    accuracy: float | None = None


@dataclass(frozen=True)
class Comparison:
    """The runs of a group beside what is possible.

    Args:
        reference_gold: Expected gold score of the reference; None where no run is on mini_instruct.
        frontier: The reward-KL frontier of that reference, from high beta to low.
        results: The runs, in order.
        best_accuracy: What a perfect reward model would have as `accuracy`.
        remarks: Sentences on what was left out or deserves doubt.
        policies: Log-probability of every response under each run's policy, nats, `(8, 54240)`, by run name.
        ref_logps: Under the reference, likewise; None where no run is on mini_instruct.
        win_rates: For every two policies the probability that a response of the first has more gold than one of the second,
            ties as half a win; empty where there are fewer than two.
    """

    reference_gold: float | None
    frontier: list[FrontierPoint]
    results: list[Result]
    best_accuracy: float | None
    remarks: list[str]
    policies: dict[str, Tensor] = field(default_factory=dict, repr=False)
    ref_logps: Tensor | None = field(default=None, repr=False)
    win_rates: dict[str, dict[str, float]] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """What report.json holds."""
        return {
            "reference": {"gold": self.reference_gold},
            "frontier": [{"beta": point.beta, "kl": point.kl, "gold": point.reward} for point in self.frontier],
            "runs": [asdict(result) for result in self.results],
            "win_rates": self.win_rates,
        }


def compare_exactly(runs: list[Run], on_progress: Callable[[str], None] = lambda what: None) -> Comparison:
    """Measures the runs that train on mini_instruct; the others appear without numbers.

    The reference is what most of the group's runs start from, as a rule the group's SFT run.

    Args:
        runs: A group.
        on_progress: Called with what is measured next.

    Raises:
        UserError: No reference can be found, or a model cannot be enumerated.
    """
    measured = [run for run in runs if run.trains_on_mini_instruct and run.architectures]
    remarks = [
        f"{run.name} has no exported model yet: `fit` writes it when it is through, `lit-align export` at any time."
        for run in runs
        if run.trains_on_mini_instruct and not run.architectures
    ]
    if not any(not run.is_reward_model for run in measured):
        reference, tables = None, {}
    else:
        reference = reference_model(measured)
        tables = policy_tables(
            [reference, *(r.folder.model for r in measured if not r.is_reward_model)], on_progress, remarks
        )
    scores = gold_scores() if measured else torch.empty(0)
    frontier = Frontier(tables[reference.resolve()], scores) if reference else None
    best_accuracy = None
    results = []
    for run in runs:
        result = Result(run.name, run.method)
        if run in measured and run.is_reward_model:
            on_progress(f"scoring every response with {run.name}")
            result = Result(run.name, run.method, accuracy=reward_accuracy(run.folder.model, scores))
            best_accuracy = best_accuracy or pair_accuracy(demonstrator_logps(), scores, scores).mean().item()
        elif run in measured and frontier and reference:
            result = policy_result(
                run, tables[run.folder.model.resolve()], tables[reference.resolve()], frontier, scores
            )
        results.append(result)
    policies = {r.name: tables[r.folder.model.resolve()] for r in measured if not r.is_reward_model}
    return Comparison(
        reference_gold=frontier.reference_reward if frontier else None,
        frontier=frontier.points() if frontier else [],
        results=results,
        best_accuracy=best_accuracy,
        remarks=remarks,
        policies=policies,
        ref_logps=tables[reference.resolve()] if reference else None,
        win_rates=win_matrix(policies, lambda first, second: win_rate(first, second, scores).mean().item()),
    )


def win_matrix(policies: Mapping[str, T], rate: Callable[[T, T], float]) -> dict[str, dict[str, float]]:
    """How often each policy wins against each other one; empty where there are fewer than two.

    Args:
        policies: What `rate` compares, by name.
        rate: How often the first wins against the second, ties as half a win.
    """
    wins: dict[str, dict[str, float]] = {name: {} for name in policies} if len(policies) > 1 else {}
    for first, second in combinations(policies, 2):
        wins[first][second] = rate(policies[first], policies[second])
        wins[second][first] = 1 - wins[first][second]
    return wins


def reference_model(runs: list[Run]) -> Path:
    """The folder of the model that most runs of a group start from; where none of them says, the first SFT run's.

    Raises:
        UserError: There is none.
    """
    exported = {run.folder.path.name: run.folder.model for run in runs}
    named: Counter[Path] = Counter()
    for run in runs:
        if run.starts_from is not None and (Path(run.starts_from) / "config.json").is_file():
            named[Path(run.starts_from)] += 1
        elif run.starts_from is not None and Path(run.starts_from).parent.name in exported:
            named[exported[Path(run.starts_from).parent.name]] += 1  # the group was moved since
    if named:
        return named.most_common(1)[0][0]
    for run in runs:
        if run.method == "SFT":
            return run.folder.model
    raise UserError(
        "There is no reference to compare with: no run here starts from a model folder that exists, and none is an SFT run. "
        "Run configs/quickstart/sft.yaml in this group first."
    )


def policy_tables(folders: list[Path], on_progress: Callable[[str], None], remarks: list[str]) -> dict[Path, Tensor]:
    """Log-probability of every response under each model, `(8, 54240)`, by resolved folder."""
    tables: dict[Path, Tensor] = {}
    for folder in folders:
        if folder.resolve() not in tables:
            on_progress(f"enumerating every response of {folder.parent.name}")
            config = ModelConfig(path=str(folder))
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always", UserWarning)
                tables[folder.resolve()] = enumerated_policy(load_policy(config), load_tokenizer(config)).logps
            remarks += [f"{folder.parent.name}: {warning.message}" for warning in caught]
    return tables


def policy_result(run: Run, logps: Tensor, ref_logps: Tensor, frontier: Frontier, scores: Tensor) -> Result:
    """The exact numbers of a policy: tables of `(8, 54240)` to means over the prompts."""
    gold = expected_reward(logps, scores).mean().item()
    kl = max(kl_divergence(logps, ref_logps).mean().item(), 0.0)
    return Result(
        name=run.name,
        method=run.method,
        gold=gold,
        kl=kl,
        frontier_gold=frontier.best_reward(kl),
        efficiency=frontier.efficiency(gold, kl) if kl >= SMALLEST_KL else None,
        win_rate=win_rate(logps, ref_logps, scores).mean().item(),
    )


def reward_accuracy(folder: Path, scores: Tensor) -> float:
    """How often a reward model agrees with Bradley-Terry labels on pairs of the demonstrator, exactly."""
    config = ModelConfig(path=str(folder))
    rewards = reward_table(load_reward_model(config), load_tokenizer(config))
    return pair_accuracy(demonstrator_logps(), scores, rewards).mean().item()


@torch.no_grad()
def reward_table(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> Tensor:
    """The reward of every response to every prompt, `(8, 54240)` float64, columns as in `word_table`, without its bias.

    Prefixes share their keys and values: a response costs its last word and its EOS.

    Args:
        model: A sequence classifier with one score.
        tokenizer: Its tokenizer, in which every word is one token.
    """
    model.eval()
    words = torch.tensor([tokenizer(word, add_special_tokens=False).input_ids[0] for word in WORDS])
    rows = []
    for prompt in PROMPTS:
        prefixes = trunk(model)(torch.tensor([tokenizer(prompt).input_ids]), use_cache=True).past_key_values
        n_prefixes, row = 1, []
        for length in range(1, MAX_WORDS + 1):
            for parents in torch.split(torch.arange(n_prefixes), CHUNK // len(words)):
                last = torch.stack(
                    [words.repeat(len(parents)), words.new_full((len(parents) * len(words),), _eos(tokenizer))], 1
                )
                row.append(model.score(_extend(model, prefixes, parents, last)[0][:, -1]).squeeze(-1).double())
            if length < MAX_WORDS:
                everything = torch.arange(n_prefixes)
                prefixes = _extend(model, prefixes, everything, words.repeat(n_prefixes)[:, None])[1]
                n_prefixes *= len(words)
        rows.append(torch.cat(row))
    return torch.stack(rows)


def _extend(model: PreTrainedModel, prefixes: Any, parents: Tensor, tokens: Tensor) -> tuple[Tensor, Any]:
    """Hidden states and cache after each of some prefixes was followed by each word: tokens are `(parents * words, T)`."""
    cache = copy.deepcopy(prefixes)
    cache.batch_select_indices(parents.repeat_interleave(len(WORDS)))
    output = trunk(model)(tokens, past_key_values=cache, use_cache=True)
    return output.last_hidden_state, output.past_key_values


def _eos(tokenizer: PreTrainedTokenizerBase) -> int:
    return int(tokenizer.eos_token_id)
