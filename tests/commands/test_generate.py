"""`generate`: rows that other commands read, and files that end the same however often they were stopped."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from lit_align import __main__ as dispatcher
from lit_align.annotation import generation
from lit_align.commands.generate import generate
from lit_align.data.rows import read_rows
from lit_align.data.schema import read_group
from lit_align.errors import UserError

PROMPTS = ["tell me about cats", "tell me about fish please", "tell me about dogs", "tell me about birds", "tell me"]


@pytest.fixture
def prompts(tmp_path: Path) -> str:
    path = tmp_path / "prompts.jsonl"
    path.write_text("".join(json.dumps({"prompt": prompt, "id": 1}) + "\n" for prompt in PROMPTS))
    return str(path)


def sampled(prompts: str, model: Path, out: Path, **settings: Any) -> list[dict[str, Any]]:
    generate(prompts, [str(model)], out, **{"k": 3, "max_new_tokens": 4, "batch_size": 2, **settings})
    return [row for _, row in read_rows(str(out))]


def test_one_row_a_prompt(prompts: str, quickstart_models: Path, tmp_path: Path) -> None:
    rows = sampled(prompts, quickstart_models / "sft", tmp_path / "out.jsonl")
    assert [row["prompt"] for row in rows] == PROMPTS
    for row in rows:
        assert len(row["responses"]) == len(row["finished"]) == len(row["models"]) == 3
        assert set(row["models"]) == {str(quickstart_models / "sft")}
        assert all(isinstance(response, str) for response in row["responses"])
        assert all(len(response.split()) <= 4 for response in row["responses"])
    assert {finished for row in rows for finished in row["finished"]} == {True, False}
    assert len({tuple(row["responses"]) for row in rows}) == len(rows)  # chunks have random numbers of their own
    group = read_group({**rows[0], "responses": ["a", "b", "c"]}, "row")
    assert (group.responses, group.scores) == (("a", "b", "c"), None)


def test_however_it_was_stopped_the_file_is_the_same(prompts: str, quickstart_models: Path, tmp_path: Path) -> None:
    sampled(prompts, quickstart_models / "sft", tmp_path / "whole.jsonl")
    whole = (tmp_path / "whole.jsonl").read_bytes()
    out = tmp_path / "out.jsonl"
    sampled(prompts, quickstart_models / "sft", out)
    line = len(whole.splitlines(keepends=True)[0])
    for size in (0, 1, line - 1, line, line + 7, len(whole) // 2, len(whole) - 1, len(whole)):
        out.write_bytes(whole[:size])
        sampled(prompts, quickstart_models / "sft", out)
        assert out.read_bytes() == whole, size


def test_settings_are_kept_to(prompts: str, quickstart_models: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    first = sampled(prompts, quickstart_models / "sft", out)
    for changed in ({"temperature": 0.5}, {"seed": 1}, {"batch_size": 3}, {"max_rows": 4}, {"top_k": 2}, {"k": 2}):
        with pytest.raises(UserError, match="begun with other settings"):
            sampled(prompts, quickstart_models / "sft", out, **changed)
    assert sampled(prompts, quickstart_models / "sft", out) == first
    other = sampled(prompts, quickstart_models / "sft", tmp_path / "other.jsonl", seed=1)
    assert [row["responses"] for row in other] != [row["responses"] for row in first]
    out.write_bytes(out.read_bytes() * 2)
    with pytest.raises(UserError, match="has 10 rows for 5 prompts"):
        sampled(prompts, quickstart_models / "sft", out)


def test_parquet_grows_as_jsonl(
    prompts: str, quickstart_models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = sampled(prompts, quickstart_models / "sft", tmp_path / "whole.jsonl")
    out = tmp_path / "out.parquet"
    with monkeypatch.context() as patch:
        patch.setattr(generation, "write_rows", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            sampled(prompts, quickstart_models / "sft", out)
    assert not out.exists()
    assert len(generation.working_file(out).read_bytes().splitlines()) == 5
    assert sampled(prompts, quickstart_models / "sft", out) == whole
    assert not generation.working_file(out).exists()
    generation.working_file(out).write_text("as after a kill before it was removed")
    assert sampled(prompts, quickstart_models / "sft", out) == whole
    assert not generation.working_file(out).exists()


def test_several_models_answer_every_prompt(
    prompts: str, quickstart_models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    (tmp_path / "link").symlink_to(quickstart_models / "sft")
    models = [str(quickstart_models / "sft"), str(tmp_path / "link")]
    out = tmp_path / "out.jsonl"
    arguments = ["--model", models[0], f"--model={models[1]}", "-k", "2", "--max_new_tokens=4", f"--out={out}"]
    monkeypatch.setattr(sys, "argv", ["lit-align", "generate", prompts, *arguments])
    assert dispatcher.main() == 0
    assert "5 prompts with 4 responses each" in capsys.readouterr().out
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert all(row["models"] == [models[0], models[0], models[1], models[1]] for row in rows)
    assert any(row["responses"][:2] != row["responses"][2:] for row in rows)


def test_the_embedded_prompts_are_repeated(quickstart_models: Path, tmp_path: Path) -> None:
    rows = sampled("mini_instruct", quickstart_models / "sft", tmp_path / "out.jsonl", max_rows=20, k=1, batch_size=20)
    assert len(rows) == 20
    assert len({row["prompt"] for row in rows}) == 8


def test_what_makes_no_sense_is_refused(prompts: str, quickstart_models: Path, tmp_path: Path) -> None:
    model, out = str(quickstart_models / "sft"), tmp_path / "out.jsonl"
    with pytest.raises(UserError, match="Name the --model"):
        generate(prompts, None, out)
    with pytest.raises(UserError, match="several different ones"):
        generate(prompts, [model, model], out)
    for name in ("k", "batch_size", "max_prompt_length"):
        with pytest.raises(UserError, match=f"{name} must be at least 1, got 0"):
            generate(prompts, [model], out, **{name: 0})
    (tmp_path / "empty.jsonl").write_text("")
    with pytest.raises(UserError, match="has no prompts"):
        generate(str(tmp_path / "empty.jsonl"), [model], out)
    mixed = [{"prompt": "text"}, {"prompt": [{"role": "user", "content": "chat"}]}]
    (tmp_path / "mixed.jsonl").write_text("\n".join(map(json.dumps, mixed)))
    with pytest.raises(UserError, match="which one column of Parquet cannot hold"):
        generate(str(tmp_path / "mixed.jsonl"), [model], tmp_path / "out.parquet")
    assert not out.exists()


@pytest.mark.slow
def test_killed_it_goes_on(quickstart_models: Path, tmp_path: Path) -> None:
    settings = {"max_rows": 600, "k": 2, "max_new_tokens": 5, "batch_size": 4}
    whole = sampled("mini_instruct", quickstart_models / "sft", tmp_path / "whole.jsonl", **settings)
    out = tmp_path / "out.jsonl"
    options = [f"--{name}={value}" for name, value in settings.items()]
    start = [sys.executable, "-m", "lit_align", "generate", "mini_instruct", f"--model={quickstart_models / 'sft'}"]
    process = subprocess.Popen([*start, *options, f"--out={out}"], env=os.environ | {"OMP_NUM_THREADS": "1"})
    while process.poll() is None and (not out.exists() or out.read_bytes().count(b"\n") < 40):
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert 40 <= out.read_bytes().count(b"\n") < 600
    assert sampled("mini_instruct", quickstart_models / "sft", out, **settings) == whole
    assert out.read_bytes() == (tmp_path / "whole.jsonl").read_bytes()
