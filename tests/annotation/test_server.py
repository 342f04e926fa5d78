"""`generate --server`: what is asked for, what becomes of the answers, and that none is lost or paid for twice."""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from openai_server import Answering, OpenAIServer, Reply, running, whole

from lit_align import __main__ as dispatcher
from lit_align.annotation import server as server_sampler
from lit_align.commands.annotate import annotate
from lit_align.commands.generate import generate
from lit_align.data import RankingData
from lit_align.data.mini_instruct import gold
from lit_align.data.rows import read_rows
from lit_align.errors import UserError
from lit_align.feedback import endpoint_asking
from lit_align.losses import RRHF as RRHFLoss
from lit_align.methods import RRHF
from lit_align.models import ModelConfig

SECRET = "sk-secret-of-mine"
CHAT = [{"role": "system", "content": "be brief"}, {"role": "user", "content": "why?"}]
PROMPTS: list[Any] = ["tell me about cats", CHAT, "tell me about fish"]

Serve = Callable[[Answering], OpenAIServer]


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch) -> Iterator[Serve]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("THE_KEY", SECRET)
    monkeypatch.setattr(endpoint_asking, "FIRST_WAIT", 0.01)
    monkeypatch.setattr(endpoint_asking, "LONGEST_WAIT", 0.02)
    with ExitStack() as stack:
        yield lambda answering: stack.enter_context(running(answering))


def write(path: Path, prompts: list[Any]) -> str:
    path.write_text("".join(json.dumps({"prompt": prompt}) + "\n" for prompt in prompts))
    return str(path)


def choice(body: dict[str, Any], text: str | None, reason: str | None = "stop", **more: Any) -> Reply:
    """A reply in the form of the API that was asked."""
    said: dict[str, Any] = (
        {"message": {"role": "assistant", "content": text, **more}} if "messages" in body else {"text": text}
    )
    usage = {"prompt_tokens": 5, "completion_tokens": 7}
    return whole({"choices": [{**said, "index": 0, "finish_reason": reason}], "usage": usage})


def prompt_of(body: dict[str, Any]) -> str:
    return body["messages"][-1]["content"] if "messages" in body else body["prompt"]


def echo(body: dict[str, Any], number: int) -> Reply:
    """What was asked, and the seed; every seventh seed is cut."""
    seed = body.get("seed", number)
    return choice(body, f"{prompt_of(body)} {seed}", "length" if seed % 7 == 0 else "stop")


def asked(url: str, prompts: str, out: Path, models: tuple[str, ...] = ("m",), **settings: Any) -> list[dict[str, Any]]:
    generate(prompts, list(models), out, server=url, **{"k": 3, "max_new_tokens": 20, **settings})
    return [row for _, row in read_rows(str(out))]


def test_rows_and_requests(serve: Serve, tmp_path: Path) -> None:
    server = serve(echo)
    rows = asked(server.url, write(tmp_path / "p.jsonl", PROMPTS), tmp_path / "out.jsonl", temperature=0.7, top_p=0.9)
    assert [row["prompt"] for row in rows] == PROMPTS
    assert len(server.bodies) == 9
    seeds = {body["seed"] for body in server.bodies}
    assert len(seeds) == 9
    assert all(0 <= seed < 2**31 for seed in seeds)
    for body, path in zip(server.bodies, server.paths, strict=True):
        text: dict[str, Any] = {"messages": CHAT} if path == "/v1/chat/completions" else {"prompt": body["prompt"]}
        same = {"model": "m", "max_tokens": 20, "temperature": 0.7, "top_p": 0.9, "seed": body["seed"]}
        assert body == {**same, **text}
    assert Counter(server.paths) == {"/v1/completions": 6, "/v1/chat/completions": 3}
    for row, text in zip(rows, ("tell me about cats", "why?", "tell me about fish"), strict=True):
        given = [int(response.removeprefix(text)) for response in row["responses"]]
        assert set(given) <= seeds
        assert row["finished"] == [seed % 7 != 0 for seed in given]
        assert row["models"] == ["m"] * 3
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.jsonl", "out.jsonl.settings.json", "p.jsonl"]


def test_the_file_does_not_depend_on_who_answers_first(serve: Serve, tmp_path: Path) -> None:
    prompts = write(tmp_path / "p.jsonl", [f"prompt {n}" for n in range(12)])

    def slow_at_first(body: dict[str, Any], number: int) -> Reply:
        time.sleep(0.05 if number % 5 == 0 else 0.0)
        return echo(body, number)

    hasty, steady = serve(slow_at_first), serve(echo)
    models = ("small", "large")
    rows = asked(hasty.url, prompts, tmp_path / "hasty.jsonl", models, k=2, concurrency=5)
    assert rows == asked(steady.url, prompts, tmp_path / "steady.jsonl", models, k=2, concurrency=1)
    assert 2 <= hasty.most_at_once <= 5
    assert steady.most_at_once == 1
    assert rows[0]["models"] == ["small", "small", "large", "large"]
    # One after the other is asked in the order of the row.
    assert [body["model"] for body in steady.bodies[:4]] == rows[0]["models"]
    assert rows[0]["responses"] == [f"prompt 0 {body['seed']}" for body in steady.bodies[:4]]
    other = asked(steady.url, prompts, tmp_path / "other.jsonl", models, k=2, seed=1)
    assert not {r for row in other for r in row["responses"]} & {r for row in rows for r in row["responses"]}


def test_how_tokens_are_drawn(serve: Serve, tmp_path: Path) -> None:
    server = serve(lambda body, number: choice(body, "yes"))
    prompts = write(tmp_path / "p.jsonl", ["?"])
    asked(server.url, prompts, tmp_path / "greedy.jsonl", k=1, top_k=1)
    asked(server.url, prompts, tmp_path / "top.jsonl", k=1, top_k=5)
    asked(server.url, prompts, tmp_path / "all.jsonl", k=1, extra={"top_k": -1})
    more = {"min_p": 0.1, "max_tokens": None, "max_completion_tokens": 30, "seed": None}
    asked(server.url, prompts, tmp_path / "extra.jsonl", k=1, extra=more)
    greedy, top, every, extra = server.bodies
    assert (greedy["temperature"], "top_k" in greedy) == (0, False)
    assert (top["temperature"], top["top_k"]) == (1.0, 5)
    assert every["top_k"] == -1
    assert extra == {
        "model": "m",
        "prompt": "?",
        "temperature": 1.0,
        "top_p": 1.0,
        "min_p": 0.1,
        "max_completion_tokens": 30,
    }


def test_what_stops_it_costs_no_answer(serve: Serve, tmp_path: Path) -> None:
    prompts = write(tmp_path / "p.jsonl", [f"prompt {n}" for n in range(10)])
    expected = asked(serve(echo).url, prompts, tmp_path / "whole.jsonl")
    stops = [4, 11, 18, 25]

    def stops_often(body: dict[str, Any], number: int) -> Reply:
        if number in stops:
            stops.remove(number)
            return whole({"error": "go away"}, 401)
        return echo(body, number)

    server = serve(stops_often)
    out = tmp_path / "out.jsonl"
    while stops:
        with pytest.raises(UserError, match="go away"):
            asked(server.url, prompts, out, concurrency=len(stops))
        assert (tmp_path / "out.jsonl.answers.sqlite").exists()
    assert asked(server.url, prompts, out) == expected
    assert out.read_bytes() == (tmp_path / "whole.jsonl").read_bytes()
    counts = Counter(body["seed"] for body in server.bodies)
    assert len(counts) == 30
    assert sum(counts.values()) == 34  # those that were refused came again
    again = len(server.bodies)
    assert asked(server.url, prompts, out) == expected
    assert len(server.bodies) == again
    assert not (tmp_path / "out.jsonl.answers.sqlite").exists()


@pytest.mark.slow  # another process has to import torch first
def test_a_kill_repeats_only_what_was_under_way(serve: Serve, tmp_path: Path) -> None:
    prompts = write(tmp_path / "p.jsonl", [f"prompt {n}" for n in range(6)])
    arrived, go_on = threading.Event(), threading.Event()

    def holds_the_eighth(body: dict[str, Any], number: int) -> Reply:
        if number == 7:
            arrived.set()
            go_on.wait(60)
        return echo(body, number)

    server = serve(holds_the_eighth)
    out = tmp_path / "out.jsonl"
    options = [f"--server={server.url}", "--model=m", "-k=3", "--max_new_tokens=20", "--concurrency=1", f"--out={out}"]
    process = subprocess.Popen(
        [sys.executable, "-m", "lit_align", "generate", prompts, *options],
        cwd=Path(__file__).parents[2],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert arrived.wait(120)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert len(out.read_bytes().splitlines()) == 2  # and the seventh answer is in the file beside it
    go_on.set()
    rows = asked(server.url, prompts, out, concurrency=1)
    assert rows == asked(serve(echo).url, prompts, tmp_path / "whole.jsonl")
    counts = Counter(body["seed"] for body in server.bodies)
    assert [counts[body["seed"]] for body in server.bodies[:10]] == [1] * 7 + [2, 2, 1]


def test_settings_are_kept_to(serve: Serve, tmp_path: Path) -> None:
    server, out = serve(echo), tmp_path / "out.jsonl"
    prompts = write(tmp_path / "p.jsonl", PROMPTS)
    first = asked(server.url, prompts, out)
    changes: list[dict[str, Any]] = [{"seed": 1}, {"k": 2}, {"temperature": 0.5}, {"max_rows": 2}, {"extra": {"a": 1}}]
    for changed in changes:
        with pytest.raises(UserError, match="begun with other settings"):
            asked(server.url, prompts, out, **changed)
    with pytest.raises(UserError, match="begun with other settings: models"):
        asked(server.url, prompts, out, ("another",))
    # How it is asked, and where, is no matter: servers move.
    elsewhere = serve(echo)
    assert asked(elsewhere.url, prompts, out, concurrency=2, timeout=5.0, api_key_env="THE_KEY") == first
    assert not elsewhere.bodies


def test_a_start_that_brought_nothing_leaves_nothing(serve: Serve, tmp_path: Path) -> None:
    def knows_one_model(body: dict[str, Any], number: int) -> Reply:
        return echo(body, number) if body["model"] == "m" else whole({"message": "no such model."}, 404)

    server = serve(knows_one_model)
    prompts = write(tmp_path / "p.jsonl", PROMPTS)
    for name in ("out.jsonl", "out.parquet"):
        out = tmp_path / name
        with pytest.raises(UserError, match=r"HTTP 404 from .*: no such model\. There is no such API or model"):
            asked(server.url, write(tmp_path / "q.jsonl", PROMPTS[:1]), out, ("wrong",))
        assert not list(tmp_path.glob("out*"))
        assert len(asked(server.url, write(tmp_path / "q.jsonl", PROMPTS[:1]), out)) == 1
        for left in tmp_path.glob("out*"):
            left.unlink()
    # A part of one row is an answer that was paid for, so the settings stay.
    stops = serve(lambda body, number: echo(body, number) if number < 4 else whole({}, 403))
    with pytest.raises(UserError, match="403"):
        asked(stops.url, prompts, tmp_path / "out.jsonl", concurrency=1, k=20)
    assert (tmp_path / "out.jsonl.settings.json").exists()


def test_who_stands_in_the_way_is_named(serve: Serve, tmp_path: Path) -> None:
    prompts = write(tmp_path / "p.jsonl", ["short", "short too", "long " * 9, "short"])

    def refuses_long_ones(body: dict[str, Any], number: int) -> Reply:
        if "top_k" in body:
            return whole({"detail": "Unexpected fields: {'top_k'}"}, 422)
        return whole({"error": {"message": "too long"}}, 400) if len(prompt_of(body)) > 9 else echo(body, number)

    server = serve(refuses_long_ones)
    with pytest.raises(UserError, match=r"Prompt 3: HTTP 400 .*too long\. The server refuses the request as it is"):
        asked(server.url, prompts, tmp_path / "out.jsonl")
    with pytest.raises(UserError, match=r"Prompt 1: HTTP 422 .* top_k is no part of the OpenAI API: leave it out"):
        asked(server.url, prompts, tmp_path / "top.jsonl", top_k=5, concurrency=1)


def test_thoughts_without_an_answer(serve: Serve, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    def thinks(body: dict[str, Any], number: int) -> Reply:
        if number % 3 == 0:
            return choice(body, None, "length", reasoning_content="let me see")
        return choice(body, "yes", reasoning_content="sure") if number % 3 == 1 else choice(body, "")

    server = serve(thinks)
    rows = asked(server.url, write(tmp_path / "p.jsonl", [CHAT, CHAT[1:]]), tmp_path / "out.jsonl", concurrency=1)
    assert [row["responses"] for row in rows] == [["", "yes", ""]] * 2
    assert [row["finished"] for row in rows] == [[False, True, True]] * 2
    assert caplog.text.count("thoughts and nothing else") == 1


def test_servers_that_decode_greedily(serve: Serve, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    prompts = write(tmp_path / "p.jsonl", [f"prompt {n}" for n in range(9)])
    same = serve(lambda body, number: choice(body, f"same to {prompt_of(body)} from {body['model']}"))
    asked(same.url, prompts, tmp_path / "greedy.jsonl", k=2, top_k=1)
    asked(same.url, prompts, tmp_path / "one.jsonl", k=1)
    other = serve(lambda body, number: choice(body, str(body["seed"] % 2)))
    asked(other.url, prompts, tmp_path / "other.jsonl", k=9)
    assert not caplog.records
    asked(same.url, prompts, tmp_path / "same.jsonl", ("a", "b"), k=2)
    assert caplog.text.count("All 2 responses to each of the first 8 prompts are the same") == 1
    caplog.clear()
    asked(same.url, prompts, tmp_path / "few.jsonl", k=2, max_rows=3)
    assert "first 3 prompts are the same" in caplog.text


def test_texts_of_any_kind(serve: Serve, tmp_path: Path) -> None:
    texts = ["Grüße 🐈\u2028\n\t", "half an emoji \ud83d", '{"a": "\\u0000"}', " leading and trailing "]
    server = serve(lambda body, number: choice(body, texts[number]))
    prompts = write(tmp_path / "p.jsonl", ["¿qué? 🐟"])
    rows = asked(server.url, prompts, tmp_path / "out.jsonl", k=4, concurrency=1)
    assert rows[0]["responses"] == texts
    assert server.bodies[0]["prompt"] == "¿qué? 🐟"


def test_answers_that_say_not_how_they_ended_are_asked_for_again(serve: Serve, tmp_path: Path) -> None:
    def late(body: dict[str, Any], number: int) -> Reply:
        return choice(body, "yes", (None, "abort", "content_filter")[min(number, 2)])

    server = serve(late)
    rows = asked(server.url, write(tmp_path / "p.jsonl", ["?"]), tmp_path / "out.jsonl", k=1)
    assert (rows[0]["responses"], rows[0]["finished"], len(server.bodies)) == (["yes"], [False], 3)


def test_the_key_is_sent_and_nowhere_else(
    serve: Serve, tmp_path: Path, caplog: pytest.LogCaptureFixture, capsys: Any
) -> None:
    caplog.set_level(logging.DEBUG)
    busy = [whole({"error": f"{SECRET} is slow"}, 503)]
    server = serve(lambda body, number: busy.pop() if busy else choice(body, f"I know {SECRET} {number}"))
    rows = asked(server.url, write(tmp_path / "p.jsonl", ["?"]), tmp_path / "out.jsonl", api_key_env="THE_KEY", k=4)
    assert {headers["Authorization"] for headers in server.headers} == {f"Bearer {SECRET}"}
    assert all(response.startswith("I know <API key>") for response in rows[0]["responses"])
    texts = [file.read_text() for file in tmp_path.iterdir()] + [caplog.text, "".join(capsys.readouterr())]
    assert not any(SECRET in text for text in texts)


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"device": "cpu"}, "--device has no effect with --server"),
        ({"batch_size": 16}, "--batch_size has no effect with --server"),
        ({"max_prompt_length": 9}, "--max_prompt_length has no effect with --server"),
        ({"dtype": "float32"}, "--dtype has no effect with --server"),
        ({"server": None, "timeout": 9.0}, "--timeout says how a server is asked: name the --server"),
        ({"server": None, "extra": {}}, "--extra says how a server is asked: name the --server"),
        ({"server": "localhost:8000/v1"}, "must be an address such as http://localhost:8000/v1"),
        ({"server": "http://me:secret@host/v1"}, "holds a name or password"),
        ({"api_key_env": "NO_SUCH_KEY"}, "the environment variable NO_SUCH_KEY is not set"),
        ({"concurrency": 0}, "concurrency must be at least 1"),
        ({"timeout": 0.0}, "timeout must be above 0 seconds"),
        ({"extra": {"n": 4, "stream": True}}, "extra must leave n, stream alone"),
        ({"extra": {"temperature": 0.5, "seed": None}}, "extra: temperature is --temperature"),
        ({"extra": {"top_k": 5}, "top_k": 3}, "extra: top_k is --top_k"),
        ({"k": 0}, "k must be at least 1"),
    ],
)
def test_what_makes_no_sense_is_refused(settings: dict[str, Any], sentence: str, tmp_path: Path) -> None:
    prompts = write(tmp_path / "p.jsonl", ["?"])
    with pytest.raises(UserError, match=sentence) as raised:
        generate(prompts, ["m"], tmp_path / "out.jsonl", **{"server": "http://localhost:8000/v1", **settings})
    assert "secret" not in str(raised.value)
    assert not (tmp_path / "out.jsonl").exists()


def test_as_people_type_it(
    serve: Serve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    server = serve(echo)
    out = tmp_path / "out.jsonl"
    prompts = write(tmp_path / "p.jsonl", PROMPTS)
    options = ["--model", "m", "--server", server.url, "-k", "2", "--concurrency=3", "--api_key_env", "THE_KEY"]
    more = ["--extra", "{chat_template_kwargs: {enable_thinking: false}, seed: null}", f"--out={out}"]
    monkeypatch.setattr(sys, "argv", ["lit-align", "generate", prompts, *options, *more])
    assert dispatcher.main() == 0
    assert "3 prompts with 2 responses each" in capsys.readouterr().out
    assert all(body["chat_template_kwargs"] == {"enable_thinking": False} for body in server.bodies)
    assert not any("seed" in body for body in server.bodies)
    assert len(server.bodies) == 6


def test_a_server_that_is_not_there(serve: Serve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_sampler, "RETRIES", 1)
    url = serve(echo).url.replace("/v1", "/v1/")
    asked(url, write(tmp_path / "p.jsonl", ["?"]), tmp_path / "there.jsonl")
    with pytest.raises(UserError, match=r"http://127.0.0.1:1/v1: gave up after 2 tries\. .* cannot be reached"):
        asked("http://127.0.0.1:1/v1", write(tmp_path / "p.jsonl", ["?"]), tmp_path / "out.jsonl")


def test_from_a_server_to_rrhf(serve: Serve, tmp_path: Path, quickstart_models: Path) -> None:
    words = ("lovely cats cats dogs", "awful cats lovely", "fish are awful fish", "cats and fish and cats")

    def writer(body: dict[str, Any], number: int) -> Reply:
        return choice(body, words[body["seed"] % 4])

    asked(serve(writer).url, "mini_instruct", tmp_path / "responses.jsonl", k=6, max_rows=8)
    annotate(str(tmp_path / "responses.jsonl"), tmp_path / "scored.jsonl", reward="MiniInstructGold", kind="scores")
    rows: list[Any] = [row for _, row in read_rows(str(tmp_path / "scored.jsonl"))]
    assert rows
    for row in rows:
        expected = [gold(row["prompt"], response) for response in row["responses"]]
        assert row["scores"] == pytest.approx(expected, abs=1e-5)
    from lightning.pytorch import Trainer

    policy = ModelConfig(str(quickstart_models / "sft"))
    data = RankingData(str(tmp_path / "scored.jsonl"), batch_size=4)
    trainer = Trainer(
        max_steps=2, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False
    )
    trainer.fit(RRHF(policy, RRHFLoss()), datamodule=data)
    assert trainer.global_step == 2
