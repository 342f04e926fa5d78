"""Responses for people to read: those that a run logged, and those of an enumerated policy."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lit_align.data.mini_instruct import PROMPTS, gold, responses

PER_PROMPT = 4
"""Responses that a report shows of each run to each prompt."""

MOST_PROMPTS = 60
MOST_CHARACTERS = 4000


@dataclass(frozen=True)
class Sample:
    """One response.

    Args:
        response: Its text.
        score: What its reward said of it; None where that is not known.
        kl: Its log-probability minus the reference's, nats; None where that is not known.
        finished: False where it ran into the length limit; None where that is not known.
    """

    response: str
    score: float | None = None
    kl: float | None = None
    finished: bool | None = None


@dataclass(frozen=True)
class RunSamples:
    """The responses of one run, by prompt.

    Args:
        step: The optimiser step they are of; None for the exported model.
        responses: At most `PER_PROMPT` a prompt.
    """

    step: int | None = None
    responses: dict[str, list[Sample]] = field(default_factory=dict)

    def add(self, prompt: str, sample: Sample) -> None:
        """Takes a response, unless the prompt has enough of them."""
        known = self.responses.setdefault(prompt, [])
        if len(known) < PER_PROMPT:
            known.append(sample)


@dataclass(frozen=True)
class SampleSet:
    """Responses of several runs that can be shown side by side.

    Args:
        title: Where they are from.
        score: What `Sample.score` is.
        runs: By run name.
    """

    title: str
    score: str
    runs: dict[str, RunSamples]

    def as_dict(self) -> dict[str, Any]:
        """What the report page holds: the prompts that most runs answered, and how many others there were."""
        answered = Counter(prompt for run in self.runs.values() for prompt in run.responses)
        prompts = [prompt for prompt, _ in answered.most_common(MOST_PROMPTS)]
        runs = {
            name: {
                "step": run.step,
                "responses": {
                    prompt: [asdict(sample) for sample in run.responses[prompt]]
                    for prompt in prompts
                    if prompt in run.responses
                },
            }
            for name, run in self.runs.items()
        }
        left_out = len(answered) - len(prompts)
        return {"title": self.title, "score": self.score, "prompts": prompts, "left_out": left_out, "runs": runs}


def logged_samples(file: Path) -> RunSamples | None:
    """The responses of the last step in a samples.jsonl; None where there are none. Lines that cannot be read are skipped.

    Args:
        file: Lines with `step`, `prompt` and `response`, as a rule also `score`, `kl` and `finished`. It may be missing.
    """
    rows = []
    text = file.read_text(encoding="utf-8", errors="replace") if file.is_file() else ""
    for line in text.split("\n"):
        try:
            row = json.loads(line)
            rows.append((int(row["step"]), _text(row["prompt"]), row))
        except (ValueError, KeyError, TypeError):
            continue
    if not rows:
        return None
    samples = RunSamples(step=max(step for step, _, _ in rows))
    for step, prompt, row in rows:
        if step == samples.step:
            finished = row.get("finished")
            samples.add(
                prompt,
                Sample(
                    response=_text(row.get("response")),
                    score=_number(row.get("score")),
                    kl=_number(row.get("kl")),
                    finished=finished if isinstance(finished, bool) else None,
                ),
            )
    return samples


def drawn_samples(logps: Tensor, ref_logps: Tensor, seed: int = 0) -> RunSamples:
    """Draws `PER_PROMPT` responses to each prompt of mini_instruct from an enumerated policy, the same ones every time.

    Args:
        logps: Log-probability of every response under the policy, nats, `(8, 54240)`.
        ref_logps: Under the reference, likewise.
        seed: Policies that are equal draw the same under one seed.
    """
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.multinomial(logps.exp(), PER_PROMPT, replacement=True, generator=generator)
    samples = RunSamples()
    for row, prompt in enumerate(PROMPTS):
        for index in drawn[row].tolist():
            text = responses()[index]
            log_ratio = (logps[row, index] - ref_logps[row, index]).item()
            samples.add(prompt, Sample(text, score=gold(prompt, text), kl=_number(log_ratio), finished=True))
    return samples


def _text(value: Any) -> str:
    """Text as it is, chat messages one below the other; cut where it is longer than a person reads."""
    if isinstance(value, list) and all(isinstance(message, dict) for message in value):
        value = "\n".join(f"{message.get('role')}: {message.get('content')}" for message in value)
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    more = len(text) - MOST_CHARACTERS
    return text if more <= 0 else f"{text[:MOST_CHARACTERS]}… ({more} more characters)"


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) and abs(value) < float("inf") else None
