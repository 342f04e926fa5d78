"""`generate --server` against `transformers serve`, where the packages for serving are installed."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from transformers import AutoTokenizer, GenerationConfig
from transformers.utils.import_utils import is_serve_available

from lit_align.commands.generate import generate
from lit_align.errors import UserError

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not is_serve_available(), reason="`transformers serve` needs pip install transformers[serving]"),
]

TEXTS = ["tell me about cats", "tell me about fish please", "tell me about dogs"]
TEMPLATE = "{% for turn in messages %}{{ turn['content'] }} {% endfor %}"
MINUTES = 2.0
"""For a server to start."""


class Served(NamedTuple):
    url: str
    greedy: str
    sampling: str


@pytest.fixture(scope="module")
def served(quickstart_models: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A server that loads the models which requests name: one whose generation config says to sample, and one as exported."""
    folder = tmp_path_factory.mktemp("served")
    for name in ("greedy", "sampling"):
        shutil.copytree(quickstart_models / "sft", folder / name)
        tokenizer = AutoTokenizer.from_pretrained(folder / name)
        tokenizer.chat_template = TEMPLATE
        tokenizer.save_pretrained(folder / name)
    config = GenerationConfig.from_pretrained(folder / "sampling")
    config.do_sample, config.top_k = True, 0
    config.save_pretrained(folder / "sampling")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    command = ["-m", "transformers.cli.transformers", "serve", "--device", "cpu", "--host", "127.0.0.1", "--port", port]
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(
            [sys.executable, *command], stdout=log, stderr=log, env=os.environ | {"OMP_NUM_THREADS": "1"}
        )
    try:
        wait_for(f"http://127.0.0.1:{port}/health", process)
        yield Served(f"http://127.0.0.1:{port}/v1", str(folder / "greedy"), str(folder / "sampling"))
    finally:
        process.terminate()
        process.wait()


def wait_for(address: str, process: subprocess.Popen[bytes]) -> None:
    until = time.monotonic() + 60 * MINUTES
    while time.monotonic() < until and process.poll() is None:
        try:
            with urllib.request.urlopen(address, timeout=5):
                return
        except urllib.error.URLError:
            time.sleep(0.2)
    raise AssertionError(f"the server is not there: {process.poll()}")


def rows(prompts: list[Any], out: Path, model: str, **settings: Any) -> list[dict[str, Any]]:
    source = out.with_suffix(".prompts.jsonl")
    source.write_text("".join(json.dumps({"prompt": prompt}) + "\n" for prompt in prompts))
    generate(str(source), [model], out, **{"max_new_tokens": 6, "k": 3, **settings})
    return [json.loads(line) for line in out.read_text().splitlines()]


def test_greedy_texts_are_those_of_the_model_here(served: Served, tmp_path: Path) -> None:
    prompts: list[Any] = [*TEXTS, *([{"role": "user", "content": text}] for text in TEXTS)]
    there = rows(prompts, tmp_path / "there.jsonl", served.greedy, server=served.url, top_k=1, k=1)
    here = rows(prompts, tmp_path / "here.jsonl", served.greedy, top_k=1, k=1)
    assert there == here
    assert any(row["responses"][0] for row in there)


def test_a_seed_brings_the_same_texts_where_requests_come_one_by_one(served: Served, tmp_path: Path) -> None:
    one_by_one = {"server": served.url, "concurrency": 1}
    first = rows(TEXTS, tmp_path / "first.jsonl", served.sampling, **one_by_one)
    assert rows(TEXTS, tmp_path / "again.jsonl", served.sampling, **one_by_one) == first
    assert rows(TEXTS, tmp_path / "other.jsonl", served.sampling, seed=1, **one_by_one) != first
    assert all(len(set(row["responses"])) > 1 for row in first)
    for row in first:
        for response, finished in zip(row["responses"], row["finished"], strict=True):
            assert len(response.split()) <= (5 if finished else 6)  # EOS is a token, too


def test_what_this_server_does_not_do_is_said(served: Served, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(UserError, match=r"Unexpected fields .*top_k.* top_k is no part of the OpenAI API"):
        rows(TEXTS, tmp_path / "top.jsonl", served.sampling, server=served.url, top_k=5)
    rows(TEXTS, tmp_path / "greedy.jsonl", served.greedy, server=served.url)
    assert "first 3 prompts are the same. The server seems to decode greedily" in caplog.text
