"""The endpoint backend against a real server on loopback: bounded, limited, and silent about the key."""

from __future__ import annotations

import json
import logging
import pickle
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, cast

import pytest

from policies.base.component import create
from policies.base.errors import JudgeError
from policies.base.records import Message, PolicyVersion
from workers.judge.judge import BACKENDS, BackendContext, JudgeBackend, Question, Reply

KEY = "sk-CANARY-0123456789"
VARIABLE = "PAWL_TEST_JUDGE_KEY"


def chat(text: Any, **message: Any) -> bytes:
    body = {
        "choices": [
            {"message": {"role": "assistant", "content": text, **message}, "finish_reason": "stop"}
        ]
    }
    return json.dumps(body).encode()


class Endpoint:
    """What the server has seen, and how it answers: `answer(number, request)` gives status, headers, body."""

    def __init__(
        self, answer: Callable[[int, dict[str, Any]], tuple[int, dict[str, str], bytes]]
    ) -> None:
        self.answer = answer
        self.requests: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.times: list[float] = []
        self.peak = 0
        self.url = ""
        self.released = threading.Event()
        self._now = 0
        self._lock = threading.Lock()

    @contextmanager
    def seen(self, request: dict[str, Any], headers: dict[str, str]) -> Iterator[int]:
        with self._lock:
            self.requests.append(request)
            self.headers.append(headers)
            self.times.append(time.monotonic())
            number = len(self.requests) - 1
            self._now += 1
            self.peak = max(self.peak, self._now)
        try:
            yield number
        finally:
            with self._lock:
                self._now -= 1


class Handler(BaseHTTPRequestHandler):
    """Hands each POST to the endpoint."""

    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        endpoint = cast(Server, self.server).endpoint
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with endpoint.seen({"path": self.path, **request}, dict(self.headers)) as number:
            status, headers, body = endpoint.answer(number, request)
        try:
            self.send_response(status)
            for name, value in {"Content-Length": str(len(body)), **headers}.items():
                self.send_header(name, value)
            self.end_headers()
            for part in (
                [body[i : i + 1] for i in range(len(body))] if "X-Drip" in headers else [body]
            ):
                self.wfile.write(part)
                time.sleep(0.05 if "X-Drip" in headers else 0)
        except OSError:
            self.close_connection = True

    def log_message(self, format: str, *args: Any) -> None:
        """Stay silent."""


class Server(ThreadingHTTPServer):
    """Ends its threads with itself."""

    daemon_threads = True
    endpoint: Endpoint

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that hangs up is part of these tests."""


@contextmanager
def serving(
    answer: Callable[[int, dict[str, Any]], tuple[int, dict[str, str], bytes]],
) -> Iterator[Endpoint]:
    endpoint = Endpoint(answer)
    with Server(("127.0.0.1", 0), Handler) as server:
        server.endpoint = endpoint
        endpoint.url = f"http://127.0.0.1:{server.server_address[1]}/v1"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield endpoint
        finally:
            endpoint.released.set()
            server.shutdown()
            thread.join()


def always(
    status: int, body: bytes, **headers: str
) -> Callable[..., tuple[int, dict[str, str], bytes]]:
    return lambda number, request: (status, headers, body)


def no_version(name: object) -> PolicyVersion:
    raise LookupError(name)


def backend(url: str, **settings: Any) -> JudgeBackend:
    fast = {"retry_seconds": 0.01, "max_retries": 2, "timeout_seconds": 5.0}
    config = BACKENDS.parse({"type": "openai", "base_url": url, "model": "m", **fast, **settings})
    context = BackendContext(policy_version=no_version, model_version=no_version)
    built: JudgeBackend = create(config, context=context)
    return built


def questions(count: int) -> list[Question]:
    return [
        Question(messages=(Message(role="user", content=f"q{i}"),), max_tokens=5, temperature=0.0)
        for i in range(count)
    ]


def one(url: str, **settings: Any) -> Reply:
    return backend(url, **settings).ask(questions(1))[0]


def test_questions_are_sent_as_chats_and_answers_keep_their_order() -> None:
    def answer(number: int, request: dict[str, Any]) -> tuple[int, dict[str, str], bytes]:
        time.sleep(0.02 * (number % 3))
        return 200, {}, chat(f"re: {request['messages'][0]['content']}")

    with serving(answer) as endpoint:
        settings = {"extra_body": {"temperature": None, "reasoning_effort": "low"}}
        replies = backend(endpoint.url + "/", **settings).ask(questions(9))
    assert [r.text for r in replies] == [f"re: q{i}" for i in range(9)]
    sent = endpoint.requests[0]
    assert (sent["path"], sent["model"], sent["max_tokens"]) == ("/v1/chat/completions", "m", 5)
    assert sent["reasoning_effort"] == "low"
    assert "temperature" not in sent
    assert "Authorization" not in endpoint.headers[0]


def test_a_429_is_repeated_after_what_retry_after_says() -> None:
    def answer(number: int, request: dict[str, Any]) -> tuple[int, dict[str, str], bytes]:
        return (429, {"Retry-After": "0.4"}, b"slow") if number == 0 else (200, {}, chat("ok"))

    with serving(answer) as endpoint:
        assert one(endpoint.url).text == "ok"
    assert endpoint.times[1] - endpoint.times[0] >= 0.4


def test_a_server_that_asks_for_a_long_wait_gets_no_repeat() -> None:
    with serving(always(429, b"later", **{"Retry-After": "3600"})) as endpoint:
        started = time.monotonic()
        assert "HTTP 429: later (after 1 tries)" in (one(endpoint.url).error or "")
    assert len(endpoint.requests) == 1
    assert time.monotonic() - started < 3


def test_server_errors_are_repeated_a_bounded_number_of_times() -> None:
    with serving(always(500, b"oops\x1b[31m")) as endpoint:
        assert one(endpoint.url, max_retries=3).error == "HTTP 500: oops[31m (after 4 tries)"
    assert len(endpoint.requests) == 4


@pytest.mark.parametrize("status", [301, 400, 401, 403, 404, 413, 422])
def test_requests_that_are_wrong_are_not_repeated(status: int) -> None:
    with serving(always(status, b"no", Location="http://127.0.0.1:1/")) as endpoint:
        assert one(endpoint.url).error == f"HTTP {status}: no"
    assert len(endpoint.requests) == 1


def test_a_server_that_drips_bytes_ends_in_a_timeout() -> None:
    with serving(always(200, chat("x" * 1_000), **{"X-Drip": "yes"})) as endpoint:
        started = time.monotonic()
        assert "no answer within 0.3 s" in (
            one(endpoint.url, timeout_seconds=0.3, max_retries=0).error or ""
        )
        assert time.monotonic() - started < 3


def test_a_server_that_hangs_ends_in_a_timeout() -> None:
    def hang(number: int, request: dict[str, Any]) -> tuple[int, dict[str, str], bytes]:
        endpoint.released.wait(10)
        return 200, {}, chat("late")

    with serving(hang) as endpoint:
        started = time.monotonic()
        reply = one(endpoint.url, timeout_seconds=0.2, max_retries=1)
        assert "no answer within 0.2 s (backend.timeout_seconds) (after 2 tries)" in (
            reply.error or ""
        )
        assert 0.4 <= time.monotonic() - started < 3


def test_a_host_that_is_not_there_gives_errors() -> None:
    with serving(always(200, b"")) as endpoint:
        gone = endpoint.url
    reply = one(gone, max_retries=1)
    assert "ConnectError" in (reply.error or "")
    assert "after 2 tries" in (reply.error or "")


@pytest.mark.parametrize(
    ("body", "error"),
    [
        (b"<html>busy</html>", "not a chat completion: <html>busy"),
        (b"\xff\xfe{", "not a chat completion"),
        (b'{"choices": []}', "not a chat completion"),
        (b"[1]", "not a chat completion"),
        (b"[" * 100_000, "not a chat completion"),
        (chat(None, refusal="I will not."), "the model refused: I will not."),
        (chat(None), "the answer is empty (finish_reason 'stop')"),
        (chat("  "), "the answer is empty"),
        (chat([1]), "the answer is empty"),
        (b"x" * (9 * 2**20), "the response is larger than"),
    ],
)
def test_rubbish_and_refusals_are_errors_at_once(body: bytes, error: str) -> None:
    with serving(always(200, body)) as endpoint:
        reply = one(endpoint.url)
    assert reply.text is None
    assert error in (reply.error or "")
    assert len(endpoint.requests) == 1


def test_one_failing_question_harms_no_other() -> None:
    def answer(number: int, request: dict[str, Any]) -> tuple[int, dict[str, str], bytes]:
        bad = request["messages"][0]["content"] == "q2"
        return (400, {}, b"too long") if bad else (200, {}, chat("ok"))

    with serving(answer) as endpoint:
        replies = backend(endpoint.url).ask(questions(5))
    assert [r.text for r in replies] == ["ok", "ok", None, "ok", "ok"]


def test_a_dead_server_is_given_up_after_failures_in_a_row() -> None:
    with serving(always(503, b"down")) as endpoint:
        judge = backend(endpoint.url, max_retries=1, give_up_after=4, max_concurrency=2)
        replies = judge.ask(questions(50))
        assert all(r.text is None for r in replies)
        assert sum("not asked: " in (r.error or "") for r in replies) >= 40
        assert len(endpoint.requests) <= 10
        before = len(endpoint.requests)
        judge.ask(questions(1))
        assert len(endpoint.requests) == before + 2


def test_never_more_requests_at_once_than_allowed() -> None:
    def answer(number: int, request: dict[str, Any]) -> tuple[int, dict[str, str], bytes]:
        time.sleep(0.03)
        return 200, {}, chat("ok")

    with serving(answer) as endpoint:
        replies = backend(endpoint.url, max_concurrency=3).ask(questions(15))
    assert all(r.text == "ok" for r in replies)
    assert endpoint.peak == 3


def test_requests_begin_no_faster_than_the_rate_over_several_batches() -> None:
    with serving(always(200, chat("ok"))) as endpoint:
        judge = backend(endpoint.url, requests_per_minute=1_200)
        judge.ask(questions(5))
        judge.ask(questions(5))
    gaps = [
        later - sooner for sooner, later in zip(endpoint.times, endpoint.times[1:], strict=False)
    ]
    assert endpoint.times[-1] - endpoint.times[0] >= 9 * 0.05 - 0.03
    assert min(gaps) > 0.02


def test_the_key_is_sent_in_the_header_and_appears_nowhere_else(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def tell_tale(number: int, request: dict[str, Any]) -> tuple[int, dict[str, str], bytes]:
        if number == 0:
            return 500, {}, b"retry"
        if number == 1:
            return 401, {}, f"wrong key {KEY}".encode()
        return 200, {}, chat(f"your key is {KEY}")

    monkeypatch.setenv(VARIABLE, KEY)
    with caplog.at_level(logging.DEBUG), serving(tell_tale) as endpoint:
        judge = backend(endpoint.url, api_key_env=VARIABLE)
        judge.start()
        replies = [judge.ask(questions(1))[0], judge.ask(questions(1))[0]]
    assert {h["Authorization"] for h in endpoint.headers} == {f"Bearer {KEY}"}
    config = cast(Any, judge).config
    shown = [
        repr(replies),
        repr(vars(judge)),
        config.model_dump_json(),
        judge.identity(),
        caplog.text,
    ]
    assert replies[0].error == "HTTP 401: wrong key (key)"
    assert replies[1].text == "your key is (key)"
    assert all("CANARY" not in text for text in shown)
    assert b"CANARY" not in pickle.dumps(config)
    assert caplog.text


@pytest.mark.parametrize("value", ["", f"{KEY}\nX-Evil: 1", f"{KEY} {KEY}", f"{KEY}é"])
def test_a_missing_or_broken_key_is_an_error_without_a_request_and_without_its_value(
    monkeypatch: pytest.MonkeyPatch, value: str
) -> None:
    monkeypatch.setenv(VARIABLE, value)
    with serving(always(200, chat("ok"))) as endpoint:
        judge = backend(endpoint.url, api_key_env=VARIABLE)
        with pytest.raises(JudgeError, match=f"environment variable {VARIABLE}") as refused:
            judge.start()
        replies = judge.ask(questions(2))
    assert endpoint.requests == []
    assert [r.text for r in replies] == [None, None]
    assert "CANARY" not in str(refused.value) + repr(replies)


def test_it_can_be_asked_from_within_a_running_event_loop() -> None:
    import asyncio

    async def from_async(judge: JudgeBackend) -> Reply:
        return judge.ask(questions(1))[0]

    with serving(always(200, chat("ok"))) as endpoint:
        assert asyncio.run(from_async(backend(endpoint.url))).text == "ok"
