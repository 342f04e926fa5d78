from __future__ import annotations

import email.utils
import json
import logging
import math
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import torch
from openai_server import Answering, OpenAIServer, Reply, continued, running, said, whole

from lit_align.errors import UserError
from lit_align.feedback import Answer, Budget, Endpoint, LLMJudge, LLMScore, endpoint_asking
from lit_align.feedback.endpoint_ledger import Ledger, Usage
from lit_align.groups import Message

SECRET = "sk-secret-of-mine"
TOP = {"A": math.log(0.7), " A": math.log(0.1), "B": math.log(0.1), "The": math.log(0.05)}

Serve = Callable[[Answering], OpenAIServer]


def asked(text: str) -> list[Message]:
    return [Message(role="user", content=text)]


def questions(n: int) -> list[list[Message]]:
    return [asked(f"question {number}") for number in range(n)]


def answers(*responses: str) -> list[Answer]:
    return [Answer("why?", response, [1], [2], finished=True) for response in responses]


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch) -> Iterator[Serve]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("THE_KEY", SECRET)
    monkeypatch.setattr(endpoint_asking, "FIRST_WAIT", 0.01)
    monkeypatch.setattr(endpoint_asking, "LONGEST_WAIT", 0.02)
    with ExitStack() as stack:
        yield lambda answering: stack.enter_context(running(answering))


@pytest.fixture
def cache(tmp_path: Path) -> str:
    return str(tmp_path / "somewhere" / "answers.sqlite")


def in_turn(*replies: Reply | None) -> Answering:
    """Each reply once, the last one ever after."""
    return lambda body, number: replies[min(number, len(replies) - 1)]


def test_labels_of_a_chat(serve: Serve, cache: str) -> None:
    server = serve(in_turn(said("A", TOP)))
    reading = Endpoint(server.url, "judge-1", cache=cache).label_logps([asked("A or B?")], ["A", "B"])
    torch.testing.assert_close(reading.logps, torch.tensor([[0.8, 0.1]]).log())
    assert reading.said == [""]
    assert server.paths == ["/v1/chat/completions"]
    assert server.bodies == [
        {
            "model": "judge-1",
            "messages": [{"role": "user", "content": "A or B?"}],
            "max_tokens": 1,
            "temperature": 1,
            "logprobs": True,
            "top_logprobs": 20,
        }
    ]
    assert "Authorization" not in server.headers[0]


def test_labels_of_a_model_that_continues_text(serve: Serve, cache: str) -> None:
    server = serve(in_turn(continued(" A", TOP)))
    endpoint = Endpoint(server.url + "/", "base", api="completions", top_logprobs=5, cache=cache)
    question = [*asked("this?"), Message(role="assistant", content="well"), *asked("A or B?")]
    torch.testing.assert_close(endpoint.label_logps([question], ["A", "B"]).logps, torch.tensor([[0.8, 0.1]]).log())
    assert server.paths == ["/v1/completions"]
    assert server.bodies[0]["prompt"] == "this?\n\nwell\n\nA or B?"
    assert server.bodies[0]["logprobs"] == 5


def test_texts(serve: Serve, cache: str) -> None:
    server = serve(lambda body, number: said(body["messages"][0]["content"].upper()))
    endpoint = Endpoint(server.url, "m", cache=cache, extra={"seed": 3, "max_tokens": None, "max_completion_tokens": 9})
    assert endpoint.complete(questions(3), 50) == ["QUESTION 0", "QUESTION 1", "QUESTION 2"]
    body = server.bodies[0]
    assert (body["temperature"], body["seed"], body["max_completion_tokens"]) == (0, 3, 9)
    assert "max_tokens" not in body


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("B", [-math.inf, 0.0]),
        (" **A**.", [0.0, -math.inf]),
        ("Response B is better", [-math.inf, 0.0]),
        ("A or B", [-math.inf, -math.inf]),
        ("Apple", [-math.inf, -math.inf]),
        ("", [-math.inf, -math.inf]),
    ],
)
def test_labels_read_from_text(text: str, expected: list[float], serve: Serve, cache: str) -> None:
    server = serve(in_turn(said(text)))
    reading = Endpoint(server.url, "m", read="text", cache=cache).label_logps([asked("?")], ["A", "B"])
    assert reading.logps.tolist() == [expected]
    assert reading.said == [text if math.inf == -max(expected) else ""]
    assert "logprobs" not in server.bodies[0]


def test_a_judge_asks_both_orders_and_a_score_asks_once(serve: Serve, cache: str) -> None:
    def favours_good_and_the_first(body: dict[str, Any], number: int) -> Reply:
        text = body["messages"][0]["content"]
        first_is_good = text.index("[Response A]\ngood") if "[Response A]\ngood" in text else 0
        return said("A", {"A": -0.1, "B": -3.1} if first_is_good else {"A": -1.0, "B": -2.0})

    server = serve(favours_good_and_the_first)
    judge = LLMJudge(Endpoint(server.url, "m", cache=cache))
    expected = torch.tensor([[1 / (1 + math.exp(-3)), 1 - 1 / (1 + math.exp(-1))]])
    torch.testing.assert_close(judge.by_order(answers("good"), answers("bad")), expected)
    verdicts = judge(answers("good"), answers("bad")) + judge(answers("bad"), answers("good"))
    assert verdicts.tolist() == [1.0]
    assert len(server.bodies) == 2

    ratings = serve(in_turn(said("7", {"7": math.log(0.6), "4": math.log(0.2), "x": math.log(0.1)})))
    score = LLMScore(Endpoint(ratings.url, "m", cache=cache), ratings=range(1, 10))
    assert score(answers("good")).total.item() == pytest.approx((0.6 * 7 + 0.2 * 4) / 0.8)


def test_an_answer_without_a_label_says_what_there_was(serve: Serve, cache: str) -> None:
    server = serve(in_turn(said("The", {"The": -0.1, "I": -3.0})))
    with pytest.raises(UserError, match=r"one of A, B, the model said 'The \| I'"):
        LLMJudge(Endpoint(server.url, "m", cache=cache))(answers("x"), answers("y"))


def test_results_are_in_the_order_of_the_questions(serve: Serve, cache: str) -> None:
    def slower_at_first(body: dict[str, Any], number: int) -> Reply:
        time.sleep(0.03 if number < 4 else 0.0)
        return said(body["messages"][0]["content"][::-1])

    server = serve(slower_at_first)
    texts = Endpoint(server.url, "m", cache=cache, concurrency=4).complete(questions(12), 5)
    assert texts == [f"question {number}"[::-1] for number in range(12)]
    assert 2 <= server.most_at_once <= 4


def test_nothing_is_asked_twice(serve: Serve, cache: str) -> None:
    server = serve(in_turn(said("A", TOP)))
    first = Endpoint(server.url, "m", cache=cache).label_logps([*questions(3), *questions(3)], ["A", "B"]).logps
    assert len(server.bodies) == 3
    again = Endpoint(server.url, "m", cache=cache).label_logps(questions(3), ["A", "B"]).logps
    assert torch.equal(again, first[:3])
    assert len(server.bodies) == 3
    Endpoint(server.url, "m", cache=cache).label_logps(questions(4), ["A", "B"])
    Endpoint(server.url, "another", cache=cache).label_logps(questions(1), ["A", "B"])
    Endpoint(server.url, "m", cache=cache, extra={"seed": 1}).label_logps(questions(1), ["A", "B"])
    assert len(server.bodies) == 6


@pytest.mark.parametrize(
    "failure",
    [
        whole({"error": {"message": "slow down"}}, status=429),
        whole({}, status=500),
        Reply(503, b"<html>busy</html>"),
        Reply(200, b"<html>hello</html>"),
        Reply(200, b'{"choices": [{"mess'),
        Reply(200, b"{}", (("Content_Length", "100"),)),
        whole({"choices": []}),
        whole(["choices"]),
        whole({"error": {"message": "upstream"}}),
        said("A", {"A": float("nan")}),
        said("A", {"A": 5.0}),
        None,
    ],
    ids=str,
)
def test_what_passes_is_tried_again(failure: Reply | None, serve: Serve, cache: str) -> None:
    server = serve(in_turn(failure, failure, said("A", TOP)))
    endpoint = Endpoint(server.url, "m", cache=cache, timeout=0.5)
    torch.testing.assert_close(endpoint.label_logps(questions(1), ["A"]).logps, torch.tensor([[0.8]]).log())
    assert len(server.bodies) == 3


@pytest.mark.parametrize(
    ("reply", "sentence"),
    [
        (whole({"error": {"message": f"bad key {SECRET}"}}, 401), r"bad key <API key>.*not accept .* variable THE_KEY"),
        (whole({"error": "no"}, 403), "does not accept the API key"),
        (whole({"error": {"message": "no model m"}}, 404), "no model m.*no such API or model"),
        (Reply(404, b"<html>"), "a web page.*check url"),
        (whole({"error": {"message": "bad field"}}, 400), "bad field.*refuses the request as it is"),
        (whole({"detail": "odd field"}, 422), ": odd field. The server refuses the request as it is"),
        (whole({"object": "error", "message": "no m"}, 404), ": no m. There is no such API or model"),
        (whole({"error": {"code": "insufficient_quota"}}, 429), "insufficient_quota"),
        (whole({}, 429, Retry_After="7200"), "asks to wait 7,200 seconds"),
        (whole({}, 307, Location="http://elsewhere/v1"), "has moved to 'http://elsewhere/v1'"),
        (said("A"), "gives no log-probabilities.*read: text"),
        (whole({"choices": [{"message": {"content": "A"}, "logprobs": {"content": []}}]}), "gives no log-prob"),
    ],
    ids=str,
)
def test_what_does_not_pass_is_said_at_once(reply: Reply, sentence: str, serve: Serve, cache: str) -> None:
    server = serve(in_turn(reply))
    endpoint = Endpoint(server.url, "m", cache=cache, api_key_env="THE_KEY", concurrency=1)
    with pytest.raises(UserError, match=f"(?s){sentence}"):
        endpoint.label_logps(questions(5), ["A", "B"])
    assert len(server.bodies) == 1


def test_it_gives_up_after_so_many_tries(serve: Serve, cache: str) -> None:
    server = serve(in_turn(whole({"error": {"message": "overloaded"}}, 529)))
    with pytest.raises(UserError, match=r"gave up after 3 tries\. HTTP 529 .* overloaded.*start again to go on"):
        Endpoint(server.url, "m", cache=cache, retries=2).complete(questions(1), 5)
    assert len(server.bodies) == 3


def test_a_server_that_is_not_there(serve: Serve, cache: str, caplog: pytest.LogCaptureFixture) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with pytest.raises(UserError, match=r"gave up after 2 tries\. http://127.0.0.1:\d+ cannot be reached"):
        Endpoint(f"http://127.0.0.1:{port}", "m", cache=cache, retries=1).complete(questions(3), 5)
    assert [record.levelname for record in caplog.records] == ["WARNING"]  # at the first try, and for one of the three
    assert "cannot be reached" in caplog.text


def test_a_server_that_stalls(serve: Serve, cache: str) -> None:
    gone = threading.Event()

    def stalls_once(body: dict[str, Any], number: int) -> Reply:
        if number == 0:
            gone.wait(5)
        return said("A")

    server = serve(stalls_once)
    assert Endpoint(server.url, "m", cache=cache, timeout=0.2).complete(questions(1), 5) == ["A"]
    gone.set()
    assert len(server.bodies) == 2


def test_a_reply_that_trickles(cache: str, serve: Serve) -> None:
    def trickle(connection: socket.socket) -> None:
        connection.recv(10_000)
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n")
        try:
            for _ in range(1000):
                connection.sendall(b" ")
                time.sleep(0.05)
        except OSError:
            connection.close()

    with socket.create_server(("127.0.0.1", 0)) as listening:
        thread = threading.Thread(target=lambda: trickle(listening.accept()[0]), daemon=True)
        thread.start()
        endpoint = Endpoint(f"http://127.0.0.1:{listening.getsockname()[1]}", "m", cache=cache, timeout=0.3, retries=0)
        with pytest.raises(UserError, match=r"took longer than 0\.3 seconds"):
            endpoint.complete(questions(1), 5)
        thread.join(5)


def test_it_waits_as_long_as_the_server_asks(serve: Serve, cache: str) -> None:
    in_a_second = email.utils.format_datetime(email.utils.localtime().astimezone(), usegmt=False)
    server = serve(in_turn(whole({}, 429, Retry_After="0.3"), whole({}, 503, Retry_After=in_a_second), said("A")))
    start = time.monotonic()
    assert Endpoint(server.url, "m", cache=cache).complete(questions(1), 5) == ["A"]
    assert 0.3 <= time.monotonic() - start < 5


def test_one_failure_stops_the_others(serve: Serve, cache: str) -> None:
    def fails_at_three(body: dict[str, Any], number: int) -> Reply:
        if number == 3:
            return whole({}, 401)
        time.sleep(0.02)
        return said("A")

    server = serve(fails_at_three)
    endpoint = Endpoint(server.url, "m", cache=cache, concurrency=2)
    with pytest.raises(UserError, match="401"):
        endpoint.complete(questions(50), 5)
    asked_so_far = len(server.bodies)
    assert asked_so_far <= 7
    server.answering = in_turn(said("A"))
    assert endpoint.complete(questions(50), 5) == ["A"] * 50
    assert len(server.bodies) == 51  # the one that was refused came again


def test_requests_per_minute(serve: Serve, cache: str) -> None:
    sent: list[float] = []

    def notes_the_time(body: dict[str, Any], number: int) -> Reply:
        sent.append(time.monotonic())
        return said("A")

    server = serve(notes_the_time)
    for part in (questions(4), questions(6)):
        # The pace is kept from one call to the next, and so over processes.
        Endpoint(server.url, "m", cache=cache, requests_per_minute=600).complete(part, 5)
    assert len(sent) == 6
    assert sent[-1] - sent[0] >= 0.45


KILLED = """
import sys
from lit_align.feedback import Endpoint
chats = [[{"role": "user", "content": f"question {n}"}] for n in range(6)]
Endpoint(sys.argv[1], "m", cache=sys.argv[2], concurrency=1).complete(chats, 5)
"""


@pytest.mark.slow  # another process has to import torch first
def test_a_kill_in_the_middle_repeats_nothing(serve: Serve, cache: str) -> None:
    arrived, go_on = threading.Event(), threading.Event()

    def holds_the_fourth(body: dict[str, Any], number: int) -> Reply:
        if number == 3:
            arrived.set()
            go_on.wait(60)
        return said(body["messages"][0]["content"])

    server = serve(holds_the_fourth)
    root = Path(__file__).parents[2]
    process = subprocess.Popen([sys.executable, "-c", KILLED, server.url, cache], cwd=root)
    assert arrived.wait(60)
    process.send_signal(signal.SIGKILL)
    process.wait()
    go_on.set()
    texts = Endpoint(server.url, "m", cache=cache, concurrency=1).complete(questions(6), 5)
    assert texts == [f"question {number}" for number in range(6)]
    contents = [body["messages"][0]["content"] for body in server.bodies]
    # Only the one that was under way came again.
    assert contents == [f"question {number}" for number in (0, 1, 2, 3, 3, 4, 5)]


def test_what_was_under_way_at_a_kill_counts_as_spent(cache: str) -> None:
    bound, used = Usage(1, 100, 50), Usage(1, 20, 7)
    ledger = Ledger(cache, "server model", Budget(), None)
    for _ in range(3):
        ledger.admit(bound)
    ledger.settle(bound, used, {"key": "answer"})
    ledger.settle(bound, Usage(0, 0, 0), {})  # refused by the server
    ledger.close()
    reopened = Ledger(cache, "server model", Budget(), None)
    assert reopened.spent() == Usage(2, 120, 57)
    assert reopened.answers(["key", "another"]) == {"key": "answer"}
    reopened.close()


def test_two_writers_share_a_cache(serve: Serve, cache: str) -> None:
    server = serve(lambda body, number: said(body["messages"][0]["content"]))
    found: list[list[str]] = []

    def ask() -> None:
        found.append(Endpoint(server.url, "m", cache=cache, concurrency=3).complete(questions(15), 5))

    threads = [threading.Thread(target=ask) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [[f"question {number}" for number in range(15)]] * 2


def test_max_requests(serve: Serve, cache: str) -> None:
    server = serve(in_turn(whole({}, 500), said("A")))
    endpoint = Endpoint(server.url, "m", cache=cache, budget=Budget(max_requests=5))
    # The failed one is not among the five.
    assert endpoint.complete(questions(3), 5) == ["A"] * 3
    with pytest.raises(
        UserError, match=r"might exceed max_requests 5\. So far there were 5 requests with 50 input and 5"
    ):
        endpoint.complete(questions(9), 5)
    assert len(server.bodies) == 6
    more = Endpoint(server.url, "m", cache=cache, budget=Budget(max_requests=9))
    assert more.complete(questions(9), 5) == ["A"] * 9
    assert len(server.bodies) == 10
    with pytest.raises(UserError, match="max_requests 9"):
        more.complete(questions(10), 5)
    other_model = Endpoint(server.url, "n", cache=cache, budget=Budget(max_requests=1))
    assert other_model.complete(questions(1), 5) == ["A"]


def test_max_cost_is_never_exceeded(serve: Serve, cache: str) -> None:
    """Each answer costs 0.02: 1,000 input tokens at 10 a million and 1,000 output tokens at 10 a million."""
    server = serve(in_turn(said("A", tokens=(1000, 1000))))
    budget = Budget(max_cost=0.11, input_price=10.0, output_price=10.0)
    endpoint = Endpoint(server.url, "m", cache=cache, budget=budget, concurrency=4)
    long_question = [asked(f"{number}" * 1000) for number in range(9)]
    with pytest.raises(
        UserError, match=r"might exceed max_cost 0\.11.*5 requests.*which cost 0\.1000.*raise the limit"
    ):
        endpoint.complete(long_question, 1000)
    assert len(server.bodies) == 5


def test_what_came_without_usage_counts_at_its_bound(serve: Serve, cache: str) -> None:
    server = serve(in_turn(continued("A")))
    budget = Budget(max_cost=0.1, input_price=10.0, output_price=10.0)
    endpoint = Endpoint(server.url, "m", api="completions", cache=cache, budget=budget, concurrency=1)
    with pytest.raises(UserError, match="5 requests"):
        # A little over 1,000 bytes and at most 800 tokens: between 0.018 and 0.02.
        endpoint.complete([asked(f"{number}" * 1000) for number in range(9)], 800)
    assert len(server.bodies) == 5


def test_the_key_is_sent_and_nowhere_else(
    serve: Serve, cache: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    server = serve(in_turn(whole({"error": {"message": f"{SECRET} is slow"}}, 500), said(f"I heard {SECRET}")))
    endpoint = Endpoint(server.url, "m", cache=cache, api_key_env="THE_KEY")
    assert endpoint.complete(questions(1), 5) == ["I heard <API key>"]
    assert [headers["Authorization"] for headers in server.headers] == [f"Bearer {SECRET}"] * 2
    server.answering = in_turn(whole({"error": {"message": f"{SECRET}?"}}, 401))
    with pytest.raises(UserError) as raised:
        endpoint.complete(questions(2), 5)
    assert "<API key> is slow" in caplog.text
    for text in (repr(endpoint), str(vars(endpoint)), str(raised.value), caplog.text):
        assert SECRET not in text
    assert raised.value.__cause__ is None
    assert SECRET.encode() not in Path(cache).read_bytes()

    monkeypatch.setenv("THE_KEY", f"{SECRET}\nX-Other: header")
    with pytest.raises(UserError, match="THE_KEY holds is not an API key") as raised:
        endpoint.complete(questions(2), 5)
    assert SECRET not in str(raised.value)
    monkeypatch.delenv("THE_KEY")
    with pytest.raises(UserError, match="THE_KEY is not set"):
        Endpoint(server.url, "m", api_key_env="THE_KEY")


def test_random_numbers_of_training_are_left_alone(serve: Serve, cache: str) -> None:
    server = serve(in_turn(whole({}, 500), said("A")))
    states = random.getstate(), torch.get_rng_state()
    Endpoint(server.url, "m", cache=cache).complete(questions(1), 5)
    assert random.getstate() == states[0]
    assert torch.equal(torch.get_rng_state(), states[1])


def test_a_cache_that_is_none(tmp_path: Path, serve: Serve) -> None:
    server = serve(in_turn(said("A")))
    file = tmp_path / "notes.txt"
    file.write_text("not a database, and longer than the header of one: " + "x" * 200)
    for cache in (str(file), str(tmp_path)):
        with pytest.raises(UserError, match=r"The cache .* cannot be"):
            Endpoint(server.url, "m", cache=cache).complete(questions(1), 5)
    assert not server.bodies


def test_nothing_asked_nothing_sent(cache: str, serve: Serve) -> None:
    server = serve(in_turn(said("A")))
    endpoint = Endpoint(server.url, "m", cache=cache)
    assert endpoint.complete([], 5) == []
    assert endpoint.label_logps([], ["A", "B"]).logps.shape == (0, 2)
    assert not server.bodies


def test_labels_that_one_token_cannot_tell_apart(cache: str) -> None:
    with pytest.raises(UserError, match="'1' may be that of '10' too"):
        LLMScore(Endpoint("http://localhost/v1", "m"))
    LLMScore(Endpoint("http://localhost/v1", "m", read="text"))


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"url": "localhost:8000"}, "must be an address such as"),
        ({"url": "http://localhost/v1?key=1"}, "must be an address such as"),
        ({"url": "http://[::1/v1"}, "must be an address such as"),
        ({"url": "http://local host/v1"}, "must be an address such as"),
        ({"url": "http://me:secret@localhost:port/v1"}, r"must be an address such as http://localhost:8000/v1\.$"),
        ({"url": "https://me:secret@host/v1"}, "name or password"),
        ({"retries": -1}, "retries must be at least 0"),
        ({"concurrency": 0}, "concurrency must be at least 1"),
        ({"top_logprobs": 1}, "top_logprobs must be at least 2"),
        ({"timeout": 0}, "must be above 0"),
        ({"requests_per_minute": 0}, "must be above 0"),
        ({"extra": {"messages": []}}, "must leave messages alone"),
        (
            {"extra": {"max_tokens": None}, "budget": Budget(None, 1.0, 1.0, 1.0)},
            "needs a limit on the length of answers",
        ),
    ],
)
def test_what_an_endpoint_refuses(settings: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence) as raised:
        Endpoint(**{"url": "http://localhost:8000/v1", "model": "m", **settings})
    assert "secret" not in str(raised.value)


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"max_requests": 0}, "max_requests must be at least 1"),
        ({"max_cost": 5.0}, "go together"),
        ({"input_price": 5.0, "output_price": 1.0}, "go together"),
        ({"max_cost": 0.0, "input_price": 5.0, "output_price": 1.0}, "must be above 0"),
        ({"max_cost": 1.0, "input_price": -5.0, "output_price": 1.0}, "0 or more"),
    ],
)
def test_what_a_budget_refuses(settings: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        Budget(**settings)


def test_the_cache_holds_whole_replies(serve: Serve, cache: str) -> None:
    import sqlite3

    server = serve(in_turn(said("A")))
    Endpoint(server.url, "m", cache=cache).complete(questions(1), 5)
    with sqlite3.connect(cache) as database:
        ((reply,),) = database.execute("SELECT answer FROM answers").fetchall()
    database.close()
    assert json.loads(reply)["usage"] == {"prompt_tokens": 10, "completion_tokens": 1}
