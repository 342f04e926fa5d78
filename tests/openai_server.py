"""A server of the OpenAI API for tests, which answers as it is told and remembers what it was asked."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple


class Reply(NamedTuple):
    status: int = 200
    body: bytes = b""
    headers: tuple[tuple[str, str], ...] = ()


Answering = Callable[[dict[str, Any], int], Reply | None]
"""From a request and its number to the reply; None drops the connection."""


def said(text: str = "A", top: dict[str, float] | None = None, tokens: tuple[int, int] = (10, 1)) -> Reply:
    """A chat completion."""
    choice: dict[str, Any] = {"message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
    if top is not None:
        listed = [{"token": token, "logprob": logprob} for token, logprob in top.items()]
        choice["logprobs"] = {"content": [{"token": text, "logprob": 0.0, "top_logprobs": listed}]}
    return whole({"choices": [choice], "usage": {"prompt_tokens": tokens[0], "completion_tokens": tokens[1]}})


def continued(text: str = " A", top: dict[str, float] | None = None) -> Reply:
    """A completion of plain text."""
    logprobs = None if top is None else {"tokens": [text], "token_logprobs": [0.0], "top_logprobs": [top]}
    return whole({"choices": [{"text": text, "logprobs": logprobs}]})


def whole(content: Any, status: int = 200, **headers: str) -> Reply:
    """A reply of JSON."""
    return Reply(status, json.dumps(content).encode(), tuple(headers.items()))


class OpenAIServer(ThreadingHTTPServer):
    """Answers by `answering`."""

    daemon_threads = True
    block_on_close = False

    def __init__(self, answering: Answering) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.answering = answering
        self.bodies: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.paths: list[str] = []
        self.at_once = self.most_at_once = 0
        self.lock = threading.Lock()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/v1"

    def handle_error(self, request: object, client_address: object) -> None:
        """Clients that go away are part of the tests."""


class Handler(BaseHTTPRequestHandler):
    server: OpenAIServer

    def do_POST(self) -> None:
        server = self.server
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with server.lock:
            server.bodies.append(body)
            server.headers.append(dict(self.headers))
            server.paths.append(self.path)
            number = len(server.bodies) - 1
            server.at_once += 1
            server.most_at_once = max(server.most_at_once, server.at_once)
        try:
            reply = server.answering(body, number)
        finally:
            with server.lock:
                server.at_once -= 1
        if reply is None:
            self.close_connection = True
            return
        self.send_response(reply.status)
        for name, value in reply.headers:
            self.send_header(name.replace("_", "-"), value)
        if not any(name == "Content_Length" for name, _ in reply.headers):
            self.send_header("Content-Length", str(len(reply.body)))
        self.end_headers()
        self.wfile.write(reply.body)

    def log_message(self, format: str, *args: object) -> None:
        """Says nothing."""


@contextmanager
def running(answering: Answering) -> Iterator[OpenAIServer]:
    """The server, in a thread."""
    server = OpenAIServer(answering)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
