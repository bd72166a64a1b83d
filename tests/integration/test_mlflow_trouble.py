"""What MLflow's client makes of a server in trouble: worth asking again, or refused for good; and never for ever."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from orchestrator.tracking.mlflow_client import MlflowSink
from orchestrator.tracking.push import Point
from orchestrator.tracking.spool import TrackedRun, TrackingRefused
from policies.base.errors import TrackingError

RUN = TrackedRun(run_id="r-1", name="q-1", experiment="e")


@contextmanager
def server(status: int, body: dict[str, str], *, delay: float = 0.0) -> Iterator[str]:
    """A server that gives one answer to everything."""

    class Handler(BaseHTTPRequestHandler):
        def answer(self) -> None:
            time.sleep(delay)
            data = json.dumps(body).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        do_GET = do_POST = do_PATCH = answer

        def log_message(self, format: str, *args: object) -> None:
            """Not here."""

    listening = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=listening.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{listening.server_port}"
    finally:
        listening.shutdown()
        listening.server_close()
        thread.join(10)


def ask(uri: str, folder: Path, timeout: float = 2.0) -> Exception:
    """What telling one metric of a run that is known raises."""
    sink = MlflowSink(uri, folder, timeout=timeout)
    sink._ids["parent"] = "0" * 32
    with pytest.raises(TrackingError) as told:
        sink.metrics(None, [Point("kl", 0.1, 1, 1)])
    return told.value


@pytest.mark.parametrize("status", [429, 500, 502, 503])
def test_a_server_in_trouble_is_asked_again_later(tmp_path: Path, status: int) -> None:
    with server(status, {"error_code": "INTERNAL_ERROR", "message": "database is gone"}) as uri:
        told = ask(uri, tmp_path)
    assert not isinstance(told, TrackingRefused)


def test_a_value_that_the_server_will_never_take_is_refused_for_good(tmp_path: Path) -> None:
    body = {"error_code": "INVALID_PARAMETER_VALUE", "message": "Invalid value for kl"}
    with server(400, body) as uri:
        assert isinstance(ask(uri, tmp_path), TrackingRefused)


def test_a_server_that_takes_too_long_costs_one_timeout(tmp_path: Path) -> None:
    with server(200, {}, delay=8.0) as uri:
        began = time.monotonic()
        told = ask(uri, tmp_path, timeout=1.0)
        spent = time.monotonic() - began
    assert not isinstance(told, TrackingRefused)
    assert spent < 6.0


def test_nobody_at_the_address_is_trouble_too(tmp_path: Path) -> None:
    sink = MlflowSink("http://127.0.0.1:9", tmp_path, timeout=1.0)
    with pytest.raises(TrackingError, match="MLflow"):
        sink.open_run(RUN, 1)
