"""The examples of docs/judges.md are what configs may say."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonargparse import ArgumentParser

from lit_align import feedback
from lit_align.feedback import Endpoint, ImplicitReward, Judge, LLMJudge, LLMScore, RewardSource

PAGE = (Path(__file__).parents[2] / "docs" / "judges.md").read_text(encoding="utf-8")
EXAMPLES = dict(re.findall(r"^```yaml title=\"(\S+)\"\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL))


def built(text: str) -> Any:
    """As the command line builds what a config names by class_path."""
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--it", type=Judge | RewardSource)
    return parser.instantiate(parser.parse_object({"it": yaml.safe_load(text)})).it


@pytest.fixture(autouse=True)
def key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JUDGE_API_KEY", "sk-1")


@pytest.mark.parametrize("name", EXAMPLES)
def test_examples_can_be_built(name: str) -> None:
    assert isinstance(built(EXAMPLES[name]), Judge | RewardSource)


def test_what_the_examples_build() -> None:
    concise = built(EXAMPLES["concise.yaml"])
    assert isinstance(concise, LLMJudge)
    assert (concise.labels, concise.critique_tokens) == (("1", "2"), 200)
    rating = built(EXAMPLES["rating.yaml"])
    assert isinstance(rating, LLMScore)
    assert rating.ratings == (1, 2, 3, 4, 5)
    paid = built(EXAMPLES["paid.yaml"]).model
    assert isinstance(paid, Endpoint)
    assert (paid.budget.max_cost, paid.budget.output_price, paid.extra) == (20.0, 0.6, {"seed": 0})
    assert isinstance(built(EXAMPLES["implicit.yaml"]).reward, ImplicitReward)


def test_every_argument_of_an_endpoint_can_be_given() -> None:
    text = """
    class_path: lit_align.feedback.LLMScore
    init_args:
      ratings: [1, 2, 3]
      on_unreadable: middle
      model:
        class_path: lit_align.feedback.Endpoint
        init_args: {url: "http://localhost:8000/v1", model: m, api: completions, api_key_env: null, read: text,
          top_logprobs: 5, cache: c.sqlite, timeout: 10, retries: 2, concurrency: 3, requests_per_minute: 60,
          budget: {max_requests: 4}, extra: {stop: ["x"], max_tokens: null}}
    """
    assert built(text).model.extra == {"stop": ["x"], "max_tokens": None}


def test_a_policy_needs_no_reference() -> None:
    text = "{class_path: lit_align.feedback.ImplicitReward, init_args: {policy: {path: p}, reference: null, beta: 1}}"
    assert list(built(text)._readers) == ["policy"]


def test_the_table_names_classes_that_there_are() -> None:
    named = re.findall(r"^\| `(\w+)` \|", PAGE, re.MULTILINE)
    assert len(named) == 5
    for name in named:
        assert issubclass(getattr(feedback, name), Judge | RewardSource)
