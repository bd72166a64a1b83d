"""A stand-in for an OpenAI-compatible judge server on loopback: it knows its models, its keys and its paths."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, cast

MODELS = ("judge-small", "judge-large")
PROMPT_TOKENS = 11
COMPLETION_TOKENS = 3


class JudgeServer(ThreadingHTTPServer):
    """Counts what it is asked."""

    daemon_threads = True

    def __init__(self, *, key: str | None, status: int, usage: bool, root: str) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.key = key
        self.status = status
        """What questions are answered with, when nothing is wrong with them."""
        self.usage = usage
        self.root = root
        self.questions: list[dict[str, Any]] = []
        self.page: bytes | None = None
        """What it answers everything with, when it is no judge server at all."""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}{self.root}"

    @property
    def asked_in_earnest(self) -> int:
        """Questions besides the trial ones, which ask for one token."""
        return sum(question["max_tokens"] > 1 for question in self.questions)


class _Handler(BaseHTTPRequestHandler):
    """The three paths that a judge needs; everything else is not found."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        server = cast(JudgeServer, self.server)
        if self.path != f"{server.root}/models":
            self._answer(404, {"error": {"message": "no such path"}})
        elif not self._is_known():
            self._answer(401, {"error": {"message": "no such key"}})
        else:
            self._answer(200, {"data": [{"id": name} for name in MODELS]})

    def do_POST(self) -> None:
        server = cast(JudgeServer, self.server)
        question = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.path != f"{server.root}/chat/completions":
            self._answer(404, {"detail": "Not Found"})
        elif not self._is_known():
            self._answer(401, {"error": {"message": "no such key"}})
        elif question["model"] not in MODELS:
            self._answer(404, {"error": {"message": f"no model {question['model']}"}})
        elif server.status != 200:
            self._answer(server.status, {"error": {"message": "not now"}})
        else:
            server.questions.append(question)
            self._answer(200, _completion(question, with_usage=server.usage))

    def _is_known(self) -> bool:
        key = cast(JudgeServer, self.server).key
        return key is None or self.headers.get("Authorization") == f"Bearer {key}"

    def _answer(self, status: int, body: dict[str, Any]) -> None:
        content, page = json.dumps(body).encode(), cast(JudgeServer, self.server).page
        if page is not None:
            status, content = 200, page
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: Any) -> None:
        """Stay silent."""


def _completion(question: dict[str, Any], *, with_usage: bool) -> dict[str, Any]:
    """Rates by the length of the question; a question of one token gets an empty text."""
    length = len(question["messages"][-1]["content"])
    said = f"Score: {1 + length % 10}" if question["max_tokens"] > 1 else ""
    body: dict[str, Any] = {
        "choices": [{"message": {"role": "assistant", "content": said}, "finish_reason": "stop"}]
    }
    if with_usage:
        body["usage"] = {
            "prompt_tokens": PROMPT_TOKENS,
            "completion_tokens": COMPLETION_TOKENS,
        }
    return body


@contextmanager
def judge_server(
    *, key: str | None = None, status: int = 200, usage: bool = True, root: str = "/v1"
) -> Iterator[JudgeServer]:
    """A server that runs while the context is open.

    Args:
        key: what it lets in; None lets everybody in.
        status: of its answers to questions that are right.
        usage: whether it counts tokens.
        root: path before `/models` and `/chat/completions`.
    """
    with JudgeServer(key=key, status=status, usage=usage, root=root) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()
