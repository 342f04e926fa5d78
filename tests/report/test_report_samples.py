import json
import math
from pathlib import Path

import pytest
import torch

from lit_align.data.mini_instruct import PROMPTS, responses
from lit_align.report.samples import (
    MOST_PROMPTS,
    PER_PROMPT,
    RunSamples,
    Sample,
    SampleSet,
    drawn_samples,
    logged_samples,
)


def test_the_last_step_is_shown(group: Path) -> None:
    samples = logged_samples(group / "ppo" / "samples.jsonl")
    assert samples is not None
    assert samples.step == 20
    assert "old" not in samples.responses
    assert samples.responses["tell me about birds"] == [
        Sample("lovely birds", score=2.0, kl=0.5, finished=False),
        Sample("awful birds"),
    ]


def test_a_file_without_samples(tmp_path: Path) -> None:
    file = tmp_path / "samples.jsonl"
    assert logged_samples(file) is None
    file.write_text('[]\nnull\n{"step": "x", "prompt": "a"}\n{"step": 1}\n')
    assert logged_samples(file) is None


def test_what_a_person_cannot_read_is_cut_and_chat_is_laid_out(tmp_path: Path) -> None:
    chat = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Hello"}]
    rows = [
        {"step": 1, "prompt": chat, "response": "a" * 4100},
        *[{"step": 1, "prompt": "p", "response": str(i)} for i in range(9)],
    ]
    file = tmp_path / "samples.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)))
    samples = logged_samples(file)
    assert samples is not None
    assert samples.responses["system: Be kind.\nuser: Hello"][0].response == "a" * 4000 + "… (100 more characters)"
    assert [sample.response for sample in samples.responses["p"]] == ["0", "1", "2", "3"]


def test_drawn_from_a_policy_that_knows_one_answer() -> None:
    n = len(responses())
    answer = responses().index("lovely cats")
    logps = torch.full((len(PROMPTS), n), -math.inf, dtype=torch.float64)
    logps[:, answer] = 0.0
    samples = drawn_samples(logps, torch.full_like(logps, -math.log(n)))
    # on topic 1.5, one positive word 0.8, one word short of three -0.25
    expected = Sample("lovely cats", score=pytest.approx(2.05), kl=pytest.approx(math.log(n)), finished=True)
    assert samples.responses["tell me about cats"] == [expected] * PER_PROMPT
    assert list(samples.responses) == list(PROMPTS)


def test_the_same_policy_draws_the_same() -> None:
    generator = torch.Generator().manual_seed(3)
    logps = torch.randn(len(PROMPTS), len(responses()), dtype=torch.float64, generator=generator).log_softmax(1)
    assert drawn_samples(logps, logps) == drawn_samples(logps.clone(), logps)
    assert drawn_samples(logps, logps, seed=1) != drawn_samples(logps, logps)
    assert all(sample.kl == 0 for drawn in drawn_samples(logps, logps).responses.values() for sample in drawn)


def test_prompts_that_most_runs_answered_come_first() -> None:
    one = RunSamples(
        responses={f"only one {i}": [Sample("a")] for i in range(MOST_PROMPTS)} | {"shared": [Sample("b")]}
    )
    other = RunSamples(step=3, responses={"shared": [Sample("c", score=1.0)]})
    shown = SampleSet("logged", "score", {"one": one, "other": other}).as_dict()
    assert shown["prompts"] == ["shared", *(f"only one {i}" for i in range(MOST_PROMPTS - 1))]
    assert shown["left_out"] == 1
    assert shown["runs"]["other"] == {
        "step": 3,
        "responses": {"shared": [{"response": "c", "score": 1.0, "kl": None, "finished": None}]},
    }
    assert len(shown["runs"]["one"]["responses"]) == MOST_PROMPTS
