"""The page in a real browser: what it shows, what a person can do with it, and that its console stays empty."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from browser import Browser

from lit_align.data.mini_instruct import PROMPTS, responses
from lit_align.report import Comparison, Result, read_group
from lit_align.report.html import write_page
from lit_align.report.sampled import Estimate, SampledResult


def write(group: Path, comparison: Comparison) -> Path:
    write_page(group, sorted(read_group(group), key=lambda run: run.name), comparison, group / "report.html")
    return group / "report.html"


@pytest.fixture
def opened(browser: Browser, group: Path, comparison: Comparison) -> Iterator[Browser]:
    """The page of `group`; whatever the test does with it, the console must stay empty."""
    browser.log()
    browser.open(write(group, comparison))
    yield browser
    assert browser.log() == []


def rows(browser: Browser) -> list[str]:
    return browser.texts("#results tbody th")


def test_it_shows_every_part(opened: Browser) -> None:
    assert opened.texts("h1") == ["my group"]
    assert opened.texts("h2") == ["Reward against KL", "Results", "Who wins", "Training", "Responses", "Configs"]
    assert opened.texts(".finding") == [
        "ppo has the most gold, 1.50: 75.0 % of the gain that 1.00 nats of KL can buy. But see the note under Results."
    ]
    assert opened.texts("#results thead th") == [
        "run", "method", "gold", "KL, nats", "best gold at that KL", "efficiency", "win rate"
    ]  # fmt: skip
    assert opened.texts("#results tbody tr:first-child td") == ["PPO", "1.500", "1.000", "2.000", "75.0 %", "87.5 %"]


def test_what_runs_wrote_is_shown_and_never_runs(opened: Browser, hostile: str) -> None:
    assert opened.script("return document.title") == "my group · lit_align"
    assert opened.count("img") == 0
    assert opened.texts("article h3")[0] == hostile
    assert opened.texts("article:first-child .response") == [hostile]
    opened.click("#configs summary")
    assert hostile in opened.texts("#configs pre")[0]


def test_a_click_sorts_the_table(opened: Browser) -> None:
    assert rows(opened) == ["ppo", "reward", "sft"]
    opened.click("#results thead th:nth-child(3) button")
    assert rows(opened) == ["ppo", "sft", "reward"]  # from high to low; what has no gold is last
    assert opened.count('#results [aria-sort="descending"]') == 1
    opened.click("#results thead th:nth-child(3) button")
    assert rows(opened) == ["sft", "ppo", "reward"]
    opened.click("#results thead th:nth-child(2) button")
    assert rows(opened) == ["ppo", "reward", "sft"]


def test_who_wins_against_whom(opened: Browser) -> None:
    assert opened.texts("#wins-exact thead th") == ["wins against", " ppo", " sft"]
    assert opened.texts("#wins-exact tr:nth-child(1) td") == ["–", "87.5 %"]
    assert opened.texts("#wins-exact tr:nth-child(2) td") == ["12.5 %", "–"]
    colour = "return getComputedStyle(document.querySelector(arguments[0])).backgroundColor"
    assert opened.script(colour, "#wins-exact .wins") != opened.script(colour, "#wins-exact .loses")
    opened.click(".legend button:first-child")
    assert opened.texts("#wins-exact thead th") == ["wins against", " sft"]


def test_what_was_measured_on_samples(browser: Browser, group: Path, comparison: Comparison) -> None:
    runs = sorted(read_group(group), key=lambda run: run.name)
    results = [
        SampledResult(
            "ppo", "PPO", Estimate(1.5, 0.25), Estimate(2.0, 0.5), {"copy": 0.75}, torch.tensor([[2.0, 2.0]])
        ),
        SampledResult("sft", "SFT", Estimate(0.5, 0.125), None, {"copy": 1.0}, torch.tensor([[2.0, 1.0]])),
    ]
    write_page(group, runs, comparison, group / "report.html", results)
    browser.open(group / "report.html")
    assert browser.texts("#sampled thead th") == ["run", "method", "gold", "±", "KL, nats", "±", "copy"]
    assert browser.texts("#sampled tbody tr:first-child td") == ["PPO", "1.50", "0.25", "2.00", "0.50", "75.0 %"]
    assert browser.texts("#sampled tbody tr:last-child td") == ["SFT", "0.50", "0.13", "–", "–", "100.0 %"]
    # Of the four pairs two tie and two are won.
    assert browser.texts("#wins-sampled tr:nth-child(1) td") == ["–", "75.0 %"]
    assert browser.log() == []


def test_the_frontier_and_its_tooltips(opened: Browser) -> None:
    assert opened.texts("#frontier .run-name") == ["ppo"]
    assert opened.texts("#frontier .reference text") == ["reference: sft"]
    place = "return document.querySelector('#frontier > svg > .mark').getAttribute('transform')"
    x, y = (float(part) for part in opened.script(place)[len("translate(") : -1].split(","))
    opened.hover("#frontier > svg", x, y)
    assert opened.texts("#frontier .tip strong") == ["ppo"]
    assert opened.texts("#frontier .tip b") == ["1.500", "1.000", "2.000", "75.0 %", "87.5 %"]
    opened.hover("#frontier > svg", x, y + 80)
    assert opened.texts("#frontier .tip strong") == ["optimal policy at β 1"]
    assert opened.texts("#frontier .tip b") == ["2.000", "1.000"]
    opened.hover("#frontier > svg", 2, 2)
    assert opened.texts("#frontier .tip") == []


def test_curves_by_metric_and_run(opened: Browser) -> None:
    assert opened.script("return document.querySelector('#metric').value") == "val/accuracy"
    assert opened.script("return [...document.querySelectorAll('#metric option')].map(e => e.value)") == [
        "train/loss",
        "val/accuracy",
    ]
    lines = "return [...document.querySelectorAll('#curves .line > path:not(.mark)')].map(e => e.getAttribute('d'))"
    ppo, sft = opened.script(lines)
    assert ppo.count("M") == 2  # NaN and infinity leave a hole
    assert (sft.count("M"), sft.count("L")) == (1, 1)
    assert opened.texts("#curves + figcaption") == ["Not logged by reward."]
    opened.click(".legend button:first-child")
    assert len(opened.script(lines)) == 1
    assert opened.texts("#frontier .run-name") == []
    assert opened.count("#results tr.off") == 1
    opened.click(".legend button:first-child")
    opened.click("#metric option[value='train/loss']")
    raw, smooth = opened.script(lines)
    assert raw.count("L") == smooth.count("L") == 49
    assert raw != smooth
    opened.script("const s = document.querySelector('#smoothing'); s.value = 0; s.dispatchEvent(new Event('input'))")
    raw, smooth = opened.script(lines)
    assert raw == smooth


def test_a_running_mean_forgets_its_start(opened: Browser) -> None:
    # weights 1; 1/3, 2/3; 1/7, 2/7, 4/7: powers of a half, made to sum to one
    assert opened.script("return smooth([1, 4, null, 0], 0.5)") == pytest.approx([1, 3, None, 9 / 7])


def test_curves_tooltip_names_the_step(opened: Browser) -> None:
    width, height = opened.script(
        "const b = document.querySelector('#curves svg').getBoundingClientRect(); return [b.width, b.height]"
    )
    opened.hover("#curves > svg", width - 30, height / 2)
    assert opened.texts("#curves .tip strong") == ["step 99"]
    assert opened.texts("#curves .tip b") == ["0.750"]


def test_search_finds_prompts_and_responses(opened: Browser, hostile: str) -> None:
    assert opened.count("article") == 2
    opened.type("#search", "LOVELY")
    assert opened.texts("article h3") == ["tell me about birds"]
    assert opened.texts(".response") == ["lovely birds … unfinished"]
    assert opened.texts("mark") == ["lovely"]
    assert opened.texts(".count") == ["1 of 2 prompts"]
    opened.type("#search", "tell me about birds")
    assert opened.texts(".response") == ["lovely birds … unfinished", "awful birds"]
    opened.type("#search", "<img")
    assert opened.texts("article h3") == [hostile]
    opened.type("#search", "nowhere")
    assert opened.count("article") == 0


def test_responses_from_elsewhere_can_be_chosen(
    browser: Browser, group: Path, comparison: Comparison, hostile: str
) -> None:
    reference = torch.zeros(len(PROMPTS), len(responses()), dtype=torch.float64).log_softmax(1)
    browser.open(write(group, replace(comparison, policies={"sft": reference}, ref_logps=reference)))
    assert browser.texts("article h3") == list(PROMPTS)
    browser.click("#samples-from option:nth-child(2)")
    assert browser.texts("article h3") == [hostile, "tell me about birds"]
    assert browser.log() == []


def test_a_group_of_which_little_is_known(browser: Browser, group: Path, comparison: Comparison) -> None:
    nothing = replace(
        comparison,
        reference_gold=None,
        frontier=[],
        best_accuracy=None,
        remarks=[],
        win_rates={},
        results=[Result(result.name, result.method) for result in comparison.results],
    )
    browser.open(write(group, nothing))
    assert browser.texts("h2") == ["Training", "Responses", "Configs"]
    assert browser.texts("#last tbody tr") == ["train/loss–2.040", "val/accuracy0.5000.750"]
    for name in ("metrics.csv", "samples.jsonl"):
        for file in group.glob(f"*/{name}"):
            file.unlink()
    browser.open(write(group, nothing))
    assert browser.texts("h2") == ["Configs"]
    assert browser.log() == []


def test_curves_open_at_a_metric_with_more_than_one_point(
    browser: Browser, group: Path, comparison: Comparison
) -> None:
    for name in ("sft", "ppo"):
        (group / name / "metrics.csv").write_text("step,train/accuracy,val/accuracy\n0,0.5,\n1,0.75,\n1,,0.5\n")
    browser.open(write(group, comparison))
    assert browser.script("return document.querySelector('#metric').value") == "train/accuracy"


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_readable_on_a_phone(opened: Browser, scheme: str) -> None:
    opened.devtools("Emulation.setDeviceMetricsOverride", width=360, height=740, deviceScaleFactor=2, mobile=True)
    opened.devtools("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
    try:
        opened.settle()
        assert opened.script("return document.documentElement.scrollWidth") == 360  # nothing sticks out sideways
        assert opened.script("return document.querySelector('#curves svg').clientWidth") < 360
        ink, paper = opened.script(
            "const s = getComputedStyle(document.body); return [s.color, s.backgroundColor].map(c => +c.match(/\\d+/)[0])"
        )
        assert (ink < paper) == (scheme == "light")
    finally:
        opened.devtools("Emulation.clearDeviceMetricsOverride")
        opened.devtools("Emulation.setEmulatedMedia", features=[])
