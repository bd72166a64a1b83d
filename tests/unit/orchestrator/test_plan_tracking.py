"""What a tracking store would refuse is refused before the run; one that does not answer is only warned of."""

from __future__ import annotations

import json
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from orchestrator.config.run_config import RunConfig
from orchestrator.plan.lines import Plan
from orchestrator.plan.tracking import plan_tracking
from tests.support.fake_runs import fake_tree
from tests.support.mlflow_server import free_port
from tests.unit.orchestrator.test_sqlite_store import write_store


def verdict(root: Path, uri: str, *, elsewhere: bool = False) -> list[tuple[str, str]]:
    """What the plan says of a tracking address."""
    tracking = {"uri": uri, "experiment": "demo/1"}
    plan = Plan()
    config = RunConfig.model_validate(fake_tree(root, tracking=tracking))
    plan_tracking(config, plan, elsewhere=elsewhere)
    return [(line.verdict, line.found) for line in plan.lines]


@contextmanager
def answering(status: int, body: object) -> Iterator[tuple[str, list[tuple[str, str | None]]]]:
    """A server that gives one answer; and what it was asked: path and credentials."""
    asked: list[tuple[str, str | None]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append((self.path, self.headers.get("Authorization")))
            data = body.encode() if isinstance(body, str) else json.dumps(body).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, format: str, *args: object) -> None:
            """Not here."""

    listening = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=listening.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"127.0.0.1:{listening.server_port}", asked
    finally:
        listening.shutdown()
        listening.server_close()
        thread.join(10)


ACTIVE = {"experiment": {"experiment_id": "4", "lifecycle_stage": "active"}}
DELETED = {"experiment": {"experiment_id": "4", "lifecycle_stage": "deleted"}}
NONE_YET = {"error_code": "RESOURCE_DOES_NOT_EXIST", "message": "no such experiment"}


@pytest.mark.parametrize(
    ("status", "body", "expected"),
    [
        (200, ACTIVE, None),
        (404, NONE_YET, None),
        (200, DELETED, ("problem", "experiments restore -x 4")),
        (401, "<html>who are you</html>", ("problem", "MLFLOW_TRACKING_USERNAME")),
        (403, {"error_code": "PERMISSION_DENIED"}, ("problem", "ask for the right to write")),
        (404, "<html>not here</html>", ("problem", "no MLflow at this address (404)")),
        (200, "<html>a page</html>", ("problem", "no MLflow at this address")),
        (503, "<html>busy</html>", ("warning", "answers with error 503")),
    ],
)  # fmt: skip
def test_an_answer_of_a_server_is_told_as_what_it_is(
    tmp_path: Path, status: int, body: Any, expected: tuple[str, str] | None
) -> None:
    with answering(status, body) as (address, asked):
        told = verdict(tmp_path, f"http://ann:s3cr3t@{address}/base")
        assert verdict(tmp_path, f"http://{address}", elsewhere=True) == []
    path, credentials = asked[0]
    assert path == "/base/api/2.0/mlflow/experiments/get-by-name?experiment_name=demo%2F1"
    assert credentials == "Basic YW5uOnMzY3IzdA=="
    assert len(asked) == 1
    if expected is None:
        assert told == []
    else:
        ((kind, text),) = told
        assert (kind, expected[1] in text) == (expected[0], True), text
        assert "s3cr3t" not in text


def test_a_server_that_is_away_is_a_warning(tmp_path: Path) -> None:
    ((kind, text),) = verdict(tmp_path, f"http://127.0.0.1:{free_port()}")
    assert kind == "warning"
    assert "does not answer" in text
    assert "sends everything later" in text


def test_a_sqlite_store_is_looked_at_and_stays_as_it_is(tmp_path: Path) -> None:
    store = tmp_path / "m.db"
    assert verdict(tmp_path, f"sqlite:///{store}") == []
    assert not store.exists()
    write_store(store, runs=1)
    assert verdict(tmp_path, f"sqlite:///{store}") == []
    with closing(sqlite3.connect(store)) as database, database:
        database.execute("INSERT INTO experiments VALUES (3, 'demo/1', 'deleted')")
    ((kind, text),) = verdict(tmp_path, f"sqlite:///{store}")
    assert (kind, "experiments restore -x 3" in text) == ("problem", True)
    with closing(sqlite3.connect(store)) as database, database:
        database.execute("UPDATE alembic_version SET version_num = '400f98739977'")
    ((kind, text),) = verdict(tmp_path, f"sqlite:///{store}")
    assert kind == "problem"
    assert sorted(p.name for p in tmp_path.glob("m.db*")) == ["m.db"]
