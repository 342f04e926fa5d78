import base64
import hashlib
import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import torch

from lit_align.data.mini_instruct import PROMPTS, responses
from lit_align.report import Comparison, read_group
from lit_align.report.html import write_page


class Elements(HTMLParser):
    """The elements of a page, and the text of those that hold code."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.inside: list[str] = []
        self.is_open = False
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))
        self.inside.append("")
        self.is_open = True

    def handle_endtag(self, tag: str) -> None:
        self.is_open = False

    def handle_data(self, data: str) -> None:
        if self.is_open:
            self.inside[-1] += data

    def named(self, tag: str) -> list[tuple[dict[str, str | None], str]]:
        return [(attrs, text) for (name, attrs), text in zip(self.found, self.inside, strict=True) if name == tag]


@pytest.fixture
def page(group: Path, comparison: Comparison) -> str:
    runs = sorted(read_group(group), key=lambda run: run.name)
    write_page(group, runs, comparison, group / "report.html")
    return (group / "report.html").read_text(encoding="utf-8")


def embedded(page: str) -> dict[str, Any]:
    return json.loads(Elements(page).named("script")[0][1])


def test_what_runs_wrote_stays_text(page: str, hostile: str) -> None:
    elements = Elements(page)
    tags = [tag for tag, _ in elements.found]
    assert tags == [
        "html",
        "head",
        "meta",
        "meta",
        "meta",
        "meta",
        "title",
        "style",
        "body",
        "noscript",
        "script",
        "script",
    ]
    data = embedded(page)
    assert data["samples"][0]["prompts"][0] == hostile
    assert data["samples"][0]["runs"]["ppo"]["responses"][hostile][0]["response"] == hostile
    assert data["remarks"] == [f"ppo: {hostile}"]
    assert hostile in data["runs"][0]["config"]


def test_a_hostile_group_name_stays_text(group: Path, comparison: Comparison) -> None:
    named = group.rename(group.parent / "<img onerror=x>")
    write_page(named, sorted(read_group(named), key=lambda run: run.name), comparison, named / "report.html")
    elements = Elements((named / "report.html").read_text(encoding="utf-8"))
    assert "img" not in [tag for tag, _ in elements.found]
    assert elements.named("title")[0][1] == "<img onerror=x> · lit_align"


def test_the_page_runs_its_own_script_and_loads_nothing(page: str) -> None:
    elements = Elements(page)
    policy = next(attrs["content"] for attrs, _ in elements.named("meta") if "http-equiv" in attrs)
    assert policy is not None
    assert policy.startswith("default-src 'none';")
    for kind, text in (("style", elements.named("style")[0][1]), ("script", elements.named("script")[1][1])):
        digest = base64.b64encode(hashlib.sha256(text.encode("utf-8")).digest()).decode()
        assert f"{kind}-src 'sha256-{digest}'" in policy
    addresses = set(re.findall(r"https?://[^\"' )]+", page))
    assert addresses <= {"http://www.w3.org/2000/svg"}  # the name of a namespace, which nothing loads
    assert not any("src" in attrs or "href" in attrs for _, attrs in elements.found)


def test_it_holds_what_the_runs_reached_and_logged(page: str, comparison: Comparison) -> None:
    data = embedded(page)
    assert data["group"] == "my group"
    assert data["report"]["runs"][0]["efficiency"] == 0.75
    assert data["report"]["runs"][1]["accuracy"] is None  # NaN, for which JSON has no number
    assert data["report"]["frontier"][1] == {"beta": 1.0, "kl": 1.0, "gold": 2.0}
    ppo, reward, sft = data["runs"]
    assert (ppo["name"], ppo["method"]) == ("ppo", "PPO")
    assert ppo["curves"] == {"val/accuracy": {"steps": [9, 19, 29, 39], "values": [0.25, None, None, 0.5]}}
    assert reward["curves"] == {}
    assert len(sft["curves"]["train/loss"]["steps"]) == 50
    assert [samples["title"] for samples in data["samples"]] == ["logged in training, last time"]


def test_responses_are_drawn_from_enumerated_policies(group: Path, comparison: Comparison) -> None:
    reference = torch.zeros(len(PROMPTS), len(responses()), dtype=torch.float64).log_softmax(1)
    measured = replace(comparison, policies={"sft": reference}, ref_logps=reference)
    write_page(group, sorted(read_group(group), key=lambda run: run.name), measured, group / "report.html")
    drawn, logged = embedded((group / "report.html").read_text(encoding="utf-8"))["samples"]
    assert drawn["prompts"] == list(PROMPTS)
    assert [len(answers) for answers in drawn["runs"]["sft"]["responses"].values()] == [4] * 8
    assert list(logged["runs"]) == ["ppo"]
