"""`annotate`: labels that train, verdicts that are asked for once, and what is said of the judges."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from openai_server import Reply, running, said

from lit_align import __main__ as dispatcher
from lit_align.commands.annotate import annotate
from lit_align.data import PreferenceData, RankingData
from lit_align.data.mini_instruct import gold, groups
from lit_align.data.rows import read_rows
from lit_align.errors import UserError

JUDGES = '''
import os, signal
from pathlib import Path

import torch

from lit_align.data.mini_instruct import gold
from lit_align.feedback import Judge, MiniInstructGold

log = Path(os.environ["ASKED"])


def asked(texts):
    with log.open("a") as lines:
        lines.writelines(text + "\\n" for text in texts)
    if os.environ.get("KILL_AT") and len(log.read_text().splitlines()) >= int(os.environ["KILL_AT"]):
        os.kill(os.getpid(), signal.SIGKILL)


class Paid(Judge):
    """Gold, and what it was asked."""

    def __init__(self, lean: float = 0.0, budget: float = 1.0) -> None:
        self.lean = lean

    def __call__(self, first, second):
        return self.by_order(first, second).mean(1)

    def by_order(self, first, second):
        pairs = list(zip(first, second))
        gaps = torch.tensor([gold(a.prompt, a.response) - gold(b.prompt, b.response) for a, b in pairs])
        said = torch.stack([gaps + self.lean, gaps - self.lean], 1).sigmoid()
        asked(f"{self.lean}: {a.prompt}: {a.response} | {b.response}" for a, b in pairs)
        return said


class PaidReward(MiniInstructGold):
    def __call__(self, answers):
        scores = super().__call__(answers)
        asked(f"{a.prompt}: {a.response}" for a in answers)
        return scores
'''


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder with rows of responses and a file of paid judges, which is the current one."""
    (tmp_path / "paid.py").write_text(JUDGES)
    rows = [{"prompt": group.prompt, "responses": list(group.responses)} for group in groups("ranking", 12, seed=3)]
    (tmp_path / "responses.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("ASKED", str(tmp_path / "asked.txt"))
    monkeypatch.setenv("COLUMNS", "200")
    yield tmp_path
    sys.modules.pop("paid", None)


def asked(folder: Path) -> list[str]:
    return (folder / "asked.txt").read_text().splitlines()


def rows_of(out: Path) -> list[Any]:
    return [row for _, row in read_rows(str(out))]


def test_preferences_train_and_agree_with_gold(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = folder / "out.jsonl"
    annotate("responses.jsonl", out, ["paid.Paid"], pairs="all")
    made = rows_of(out)
    given = rows_of(folder / "responses.jsonl")
    pairs = sum(len(row["responses"]) * (len(row["responses"]) - 1) // 2 for row in given)
    ties = sum(
        gold(row["prompt"], a) == gold(row["prompt"], b)
        for row in given
        for i, a in enumerate(row["responses"])
        for b in row["responses"][:i]
    )
    assert len(asked(folder)) == len(set(asked(folder))) == pairs
    assert len(made) == pairs - ties
    for row in made:
        assert gold(row["prompt"], row["chosen"]) > gold(row["prompt"], row["rejected"])
        assert 0.5 < row["probability"] < 1
    data = PreferenceData(str(out), tokenizer="mini_instruct")
    data.setup("fit")
    assert f"{pairs} pairs compared, {ties} ties" in capsys.readouterr().out
    said = json.loads((folder / "out.jsonl.report.json").read_text())
    assert (said["pairs"], said["ties"], said["written"], said["judges"][0]["position"]) == (
        pairs,
        ties,
        len(made),
        None,
    )


@pytest.mark.parametrize("kind", ["rankings", "scores"])
@pytest.mark.parametrize("by", ["judge", "reward"])
def test_rankings_and_scores_train(folder: Path, kind: Any, by: str) -> None:
    out = folder / "out.parquet"
    if by == "judge":
        annotate("responses.jsonl", out, ["paid.Paid"], kind=kind)
    else:
        annotate("responses.jsonl", out, reward="paid.PaidReward", kind=kind)
    made = rows_of(out)
    assert len(made) == 12
    for row in made:
        golds = [gold(row["prompt"], response) for response in row["responses"]]
        values = row["scores"] if kind == "scores" else [-place for place in row["ranking"]]
        # The mean probability of winning against gold orders as gold does, by sigmoid(x - y) being monotone in x.
        assert sorted(range(len(golds)), key=lambda i: (golds[i], i)) == sorted(
            range(len(golds)), key=lambda i: (round(values[i], 5), i)
        )
        if by == "reward" and kind == "scores":
            assert values == pytest.approx(golds)
    data = RankingData(str(out), tokenizer="mini_instruct")
    data.setup("fit")


def test_best_against_worst(folder: Path) -> None:
    annotate("responses.jsonl", folder / "out.jsonl", reward="paid.PaidReward", pairs="best_worst")
    for row, made in zip(rows_of(folder / "responses.jsonl"), rows_of(folder / "out.jsonl"), strict=True):
        golds = [gold(row["prompt"], response) for response in row["responses"]]
        assert (made["score_chosen"], made["score_rejected"]) == pytest.approx((max(golds), min(golds)))
    with pytest.raises(UserError, match="best_worst needs to know which are best and worst"):
        annotate("responses.jsonl", folder / "judged.jsonl", ["paid.Paid"], pairs="best_worst")
    annotate("responses.jsonl", folder / "scored.jsonl", reward="paid.PaidReward", kind="scores")
    annotate("scored.jsonl", folder / "again.jsonl", ["paid.Paid"], pairs="best_worst")
    chosen = [(row["chosen"], row["rejected"]) for row in rows_of(folder / "out.jsonl")]
    assert [(row["chosen"], row["rejected"]) for row in rows_of(folder / "again.jsonl")] == chosen


def test_a_reward_is_paid_for_what_is_compared_and_no_more(folder: Path) -> None:
    annotate("responses.jsonl", folder / "out.jsonl", reward="paid.PaidReward", pairs="first")
    first_two = [
        f"{row['prompt']}: {text}" for row in rows_of(folder / "responses.jsonl") for text in row["responses"][:2]
    ]
    assert asked(folder) == first_two


def test_several_judges_are_compared_and_their_mean_is_the_label(folder: Path, capsys: Any) -> None:
    (folder / "leaning.yaml").write_text("class_path: paid.Paid\ninit_args:\n  lean: 2.0\n")
    arguments = ["--judge", "paid.Paid", "--judge", "leaning.yaml", "--pairs", "all", "--out", "out.jsonl"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["lit-align", "annotate", "responses.jsonl", *arguments])
        assert dispatcher.main() == 0
    shown = capsys.readouterr().out
    assert "Judges 1 and 2 agree on" in shown
    said = json.loads((folder / "out.jsonl.report.json").read_text())
    assert said["judges"][1]["judge"] == {"class_path": "paid.Paid", "init_args": {"lean": 2.0, "budget": 1.0}}
    assert said["judges"][0]["position"] is None
    # Of two answers within 2 of each other in gold the one shown first is preferred, whichever it is.
    given = rows_of(folder / "responses.jsonl")
    gaps = [
        gold(row["prompt"], a) - gold(row["prompt"], b)
        for row in given
        for i, b in enumerate(row["responses"])
        for a in row["responses"][:i]
    ]
    position = said["judges"][1]["position"]
    flips = sum(abs(gap) < 2 for gap in gaps)
    sure = sum(abs(gap) != 2 for gap in gaps)
    assert position["flips"]["value"] == pytest.approx(flips / sure)
    assert position["first"]["value"] > 0.7
    assert said["agreement"][0]["share"]["value"] > 0.9  # the lean cancels over both orders


def test_what_was_judged_is_not_judged_again_and_the_file_is_the_same(folder: Path) -> None:
    annotate("responses.jsonl", folder / "out.jsonl", ["paid.Paid"], pairs="all")
    whole, once = (folder / "out.jsonl").read_bytes(), asked(folder)
    verdicts = folder / "out.jsonl.verdicts.jsonl"
    lines = verdicts.read_bytes().splitlines(keepends=True)
    assert len(lines) == 12
    annotate("responses.jsonl", folder / "out.jsonl", ["paid.Paid"], pairs="all", batch_size=3)
    assert asked(folder) == once
    (folder / "asked.txt").write_text("")
    (folder / "out.jsonl").unlink()
    verdicts.write_bytes(b"".join(lines[:5]) + lines[5][:9])
    annotate("responses.jsonl", folder / "out.jsonl", ["paid.Paid"], pairs="all")
    judged = sum(len(json.loads(line)["pairs"]) for line in lines[:5])
    assert asked(folder) == once[judged:]
    assert (folder / "out.jsonl").read_bytes() == whole
    richer = "{class_path: paid.Paid, init_args: {budget: 2}}"
    annotate("responses.jsonl", folder / "out.jsonl", [richer], pairs="all")
    assert asked(folder) == once[judged:]
    with pytest.raises(UserError, match="begun with other settings: judges"):
        annotate(
            "responses.jsonl",
            folder / "out.jsonl",
            ['{"class_path": "paid.Paid", "init_args": {"lean": 1}}'],
            pairs="all",
        )


def test_killed_no_verdict_is_lost_and_none_repeated(folder: Path) -> None:
    arguments = ["--judge", "paid.Paid", "--batch_size", "2", "--pairs", "all", "--out", "out.jsonl"]
    command = [sys.executable, "-m", "lit_align", "annotate", "responses.jsonl", *arguments]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[2])}
    killed = subprocess.run(command, env=environment | {"KILL_AT": "60"}, check=False, capture_output=True)
    assert killed.returncode == -signal.SIGKILL
    lines = [json.loads(line) for line in (folder / "out.jsonl.verdicts.jsonl").read_text().splitlines()]
    before = asked(folder)
    kept = sum(len(line["pairs"]) for line in lines)
    assert 0 < kept < len(before)  # those it was killed with had not been given
    (folder / "asked.txt").write_text("".join(f"{line}\n" for line in before[:kept]))
    annotate("responses.jsonl", folder / "out.jsonl", ["paid.Paid"], pairs="all", batch_size=2)
    resumed = asked(folder)
    assert len(resumed) == len(set(resumed))
    (folder / "asked.txt").write_text("")
    annotate("responses.jsonl", folder / "whole.jsonl", ["paid.Paid"], pairs="all", batch_size=2)
    assert asked(folder) == resumed
    assert (folder / "whole.jsonl").read_bytes() == (folder / "out.jsonl").read_bytes()


@pytest.mark.slow  # another process has to import torch first
def test_killed_while_a_paid_server_judges_no_answer_is_lost_and_none_repeated(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    arrived, go_on = threading.Event(), threading.Event()

    def holds_the_last_before_the_kill(body: dict[str, Any], number: int) -> Reply:
        if number == 30:
            arrived.set()
            go_on.wait(60)
        first = 0.5 + len(body["messages"][-1]["content"]) % 40 / 100
        return said("A", {"A": math.log(first), "B": math.log(1 - first)})

    with running(holds_the_last_before_the_kill) as server:
        endpoint = {"url": server.url, "model": "judge", "cache": "answers.sqlite", "concurrency": 1}
        model = {"class_path": "lit_align.feedback.Endpoint", "init_args": endpoint}
        judge = json.dumps({"class_path": "LLMJudge", "init_args": {"model": model}})
        arguments = ["annotate", "responses.jsonl", "--judge", judge, "--pairs", "all", "--batch_size", "2"]
        environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[2])}
        process = subprocess.Popen(
            [sys.executable, "-m", "lit_align", *arguments, "--out", "out.jsonl"], env=environment
        )
        try:
            assert arrived.wait(120)
        finally:
            process.kill()
            process.wait()
        under_way = json.dumps(server.bodies[30])
        go_on.set()
        annotate("responses.jsonl", folder / "out.jsonl", [judge], pairs="all", batch_size=2)
        requests = Counter(json.dumps(body) for body in server.bodies)
        assert requests.pop(under_way) == 2  # its answer never arrived
        assert len(requests) > 100
        assert set(requests.values()) == {1}
        bought = len(server.bodies)
        annotate("responses.jsonl", folder / "whole.jsonl", [judge], pairs="all", batch_size=2)
        assert len(server.bodies) == bought
    assert (folder / "whole.jsonl").read_bytes() == (folder / "out.jsonl").read_bytes()


@pytest.mark.parametrize("select", ["uniform", "disagreement", "thompson"])
def test_a_budget_is_kept_to_and_the_selection_survives_a_stop(folder: Path, select: Any) -> None:
    ensemble = (
        None if select == "uniform" else ["MiniInstructGold", "{class_path: LinearProxy, init_args: {pairs: 50}}"]
    )
    out = folder / "out.jsonl"
    annotate("responses.jsonl", out, ["paid.Paid"], select=select, budget=20, ensemble=ensemble)
    once = asked(folder)
    assert len(once) == len(set(once)) == 20
    verdicts = folder / "out.jsonl.verdicts.jsonl"
    verdicts.write_bytes(b"".join(verdicts.read_bytes().splitlines(keepends=True)[:1]))
    annotate("responses.jsonl", out, ["paid.Paid"], select=select, budget=20, ensemble=ensemble)
    assert set(asked(folder)) == set(once)


def test_agreement_with_scores_in_the_rows(folder: Path) -> None:
    rows = [
        {"prompt": g.prompt, "chosen": g.responses[0], "rejected": g.responses[1]} for g in groups("preference", 50)
    ]
    (folder / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    annotate("pairs.jsonl", folder / "out.jsonl", ["paid.Paid"])
    golds = [(gold(row["prompt"], row["chosen"]), gold(row["prompt"], row["rejected"])) for row in rows]
    right, differing = sum(a > b for a, b in golds), sum(a != b for a, b in golds)
    found = json.loads((folder / "out.jsonl.report.json").read_text())["label_agrees_with_scores"]
    assert (found["value"], found["pairs"]) == (pytest.approx(right / differing), differing)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({}, "Name a --judge that compares or a --reward that scores"),
        ({"judge": ["paid.Paid"], "reward": "MiniInstructGold"}, "and not both"),
        ({"batch_size": 0}, "batch_size must be at least 1"),
        ({"kind": "scores", "pairs": "all"}, "so --pairs has no effect"),
        ({"kind": "rankings", "select": "uniform"}, "so --select has no effect"),
        ({"budget": 3}, "--budget is for --select"),
        ({"seed": 3}, "--seed is for --select"),
        ({"ensemble": ["MiniInstructGold"]}, "--ensemble is for --select"),
        ({"select": "uniform"}, "needs a --budget"),
        ({"select": "uniform", "budget": 0}, "at least 1 pair, got 0"),
        ({"select": "uniform", "budget": 1, "pairs": "all"}, "so --pairs has no effect"),
        ({"select": "uniform", "budget": 1, "ensemble": ["MiniInstructGold"]}, "asks nobody"),
        ({"select": "thompson", "budget": 1, "ensemble": ["MiniInstructGold"]}, "twice or more"),
        ({"select": "disagreement", "budget": 1, "seed": 1, "ensemble": ["MiniInstructGold"] * 2}, "draws nothing"),
    ],
)
def test_what_makes_no_sense_is_refused(folder: Path, arguments: dict[str, Any], sentence: str) -> None:
    given = arguments if "judge" in arguments or not arguments else {"judge": ["paid.Paid"], **arguments}
    with pytest.raises(UserError, match=sentence):
        annotate("responses.jsonl", folder / "out.jsonl", **given)
    assert not (folder / "out.jsonl.settings.json").exists()


def test_judges_that_cannot_be_built_are_a_sentence(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for text, sentence in (
        ("missing.yaml", "--judge: there is no file 'missing.yaml'"),
        ("[", "--judge: '[' is no YAML"),
        (
            yaml.safe_dump({"class_path": "RewardJudge", "init_args": {"reward": "MiniInstructGold", "scale": -1}}),
            "scale must",
        ),
    ):
        with pytest.raises(UserError) as refused:
            annotate("responses.jsonl", folder / "out.jsonl", [text])
        assert sentence in str(refused.value)
    with pytest.raises(SystemExit):
        annotate("responses.jsonl", folder / "out.jsonl", ["RewardJudg"])
    assert "there is no class 'RewardJudg'" in capsys.readouterr().err
