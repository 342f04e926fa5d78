"""Prompts to responses, chunk by chunk, so that a file that was stopped ends as it would have ended."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from lit_align.annotation.records import Records, Row, begin, digest, write_rows
from lit_align.data import PromptData
from lit_align.data.prompts import PromptCounts
from lit_align.errors import UserError
from lit_align.feedback import Answer, sample_answers
from lit_align.groups import Text
from lit_align.models import ModelConfig, load_policy, load_tokenizer
from lit_align.models.fingerprint import fingerprint
from lit_align.rollout import RolloutConfig

OnChunk = Callable[[int, int], None]
"""Called with the number of rows that are written, and of tokens sampled for the last ones of them."""


@dataclass(frozen=True)
class Plan:
    """What to sample, and how.

    Args:
        k: Responses to a prompt from each model.
        rollout: How they are sampled.
        max_prompt_length: Tokens of a prompt; a longer one loses its beginning.
        batch_size: Prompts sampled together. It decides which random numbers a prompt gets.
        seed: Of the random numbers.
        device: Where the models run.
    """

    k: int
    rollout: RolloutConfig
    max_prompt_length: int
    batch_size: int
    seed: int
    device: str

    def __post_init__(self) -> None:
        for name, value in (
            ("k", self.k),
            ("batch_size", self.batch_size),
            ("max_prompt_length", self.max_prompt_length),
        ):
            if value < 1:
                raise UserError(f"{name} must be at least 1, got {value}.")


class Sampler:
    """Several policies, each of which answers every prompt.

    Args:
        models: Their folders or hub names, each once.
        dtype: Of their weights.
        plan: How they answer.
    """

    def __init__(self, models: Sequence[str], dtype: Any, plan: Plan) -> None:
        if not models or len(set(models)) < len(models):
            raise UserError("Name one --model or several different ones; for more responses of one, raise k.")
        configs = [ModelConfig(path=path, dtype=dtype) for path in models]
        device = torch.device(plan.device)
        self.plan = plan
        self.names = list(models)
        self.dtype = dtype
        self._policies = [(load_policy(config).eval().to(device), load_tokenizer(config)) for config in configs]
        self.fingerprints = [fingerprint(policy) for policy, _ in self._policies]

    def __call__(self, prompts: Sequence[Text], chunk: int) -> list[list[Answer]]:
        """Answers to the prompts of one chunk: for each prompt, K of the first model, then K of the second.

        The random numbers follow from seed, chunk and model alone, whatever was sampled before.
        """
        k = self.plan.k
        rows: list[list[Answer]] = [[] for _ in prompts]
        for name, (policy, tokenizer) in zip(self.names, self._policies, strict=True):
            mixed = hashlib.sha256(f"{self.plan.seed}/{chunk}/{self.names.index(name)}".encode()).digest()
            torch.manual_seed(int.from_bytes(mixed[:8], "big"))
            answers = sample_answers(policy, tokenizer, prompts, k, self.plan.rollout, self.plan.max_prompt_length)
            for number, of_prompt in enumerate(rows):
                of_prompt.extend(answers[number * k : (number + 1) * k])
        return rows


def read_texts(name: str, columns: dict[str, str] | None, max_rows: int | None) -> list[Text]:
    """The prompts that `PromptData` would train on, in the order of their rows.

    Raises:
        UserError: A row without a prompt, or none at all.
    """
    counts = PromptCounts("raise")
    data = PromptData(name, max_rows=max_rows, columns=columns)
    texts = [group.prompt for group in data.read(counts)]
    if not texts:
        raise UserError(f"{name} has no prompts.")
    return texts


def settings_of(sampler: Sampler, source: Mapping[str, Any], prompts: Sequence[Text]) -> Row:
    """All that decides what stands in the file of responses."""
    plan = sampler.plan
    sampling = plan.rollout.sampling
    return {
        "prompts": {**source, "number": len(prompts), "hash": digest(prompts)},
        "models": [
            {"path": path, "fingerprint": mark} for path, mark in zip(sampler.names, sampler.fingerprints, strict=True)
        ],
        "dtype": sampler.dtype,
        "k": plan.k,
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "top_k": sampling.top_k,
        "max_new_tokens": plan.rollout.max_new_tokens,
        "max_prompt_length": plan.max_prompt_length,
        "batch_size": plan.batch_size,
        "seed": plan.seed,
        "device": plan.device,
    }


def working_file(out: Path) -> Path:
    """Where rows stand while there are not yet all of them: JSONL grows in its place, Parquet is written at the end."""
    return out if out.suffix == ".jsonl" else out.with_name(out.name + ".working.jsonl")


def generate_file(sampler: Sampler, prompts: Sequence[Text], settings: Row, out: Path, on_chunk: OnChunk) -> int:
    """Samples what is missing of a file of responses.

    Args:
        sampler: The policies.
        prompts: All prompts, of which the first may be answered in the file already.
        settings: As `settings_of`; the file has to be begun with the same.
        out: The file, JSONL or Parquet.
        on_chunk: Told of progress.

    Returns:
        How many rows were there already.

    Raises:
        UserError: The file was begun with other settings, or holds more than it should.
    """
    working = working_file(out)
    if working != out and len({type(prompt) for prompt in prompts}) > 1:
        raise UserError(
            f"{out}: some prompts are text and some are chats, which one column of Parquet cannot hold. Name a .jsonl file."
        )
    begin(out, settings, working)
    if working != out and out.exists():
        return len(prompts)
    records = Records(working)
    there = len(records)
    if there > len(prompts):
        raise UserError(
            f"{working} has {there} rows for {len(prompts)} prompts, so somebody else wrote into it. Remove it."
        )
    on_chunk(there, 0)
    for rows, tokens in _missing(sampler, prompts, there):
        records.append(rows)
        on_chunk(len(records), tokens)
    if working != out:
        write_rows(out, records.read())
        working.unlink()
    return there


def _missing(sampler: Sampler, prompts: Sequence[Text], there: int) -> Iterator[tuple[list[Row], int]]:
    """Rows from `there` on, chunk by chunk, and the tokens sampled for each chunk."""
    size = sampler.plan.batch_size
    # A chunk of which only a part is in the file is sampled anew as a whole: a text depends on those sampled beside it.
    for chunk in range(there // size, -(-len(prompts) // size)):
        start = chunk * size
        answers = sampler(prompts[start : start + size], chunk)
        tokens = sum(len(answer.response_ids) for row in answers for answer in row)
        names = [name for name in sampler.names for _ in range(sampler.plan.k)]
        rows = [as_row(row, names) for row in answers]
        yield rows[max(there - start, 0) :], tokens


def as_row(answers: Sequence[Answer], models: list[str]) -> Row:
    """The answers to one prompt as a row: `finished` is false of a response that `max_new_tokens` cut."""
    return {
        "prompt": answers[0].prompt,
        "responses": [answer.response for answer in answers],
        "finished": [answer.finished for answer in answers],
        "models": models,
    }
