"""What a run leaves in a real MLflow: in a SQLite file, and on a server that goes away and comes back."""

from __future__ import annotations

import json
import os
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import pytest

from orchestrator.config.sections import TrackingSettings
from orchestrator.runs.folder import RunFolder
from orchestrator.runs.state import results_of
from orchestrator.tracking.mlflow_client import Tracker, make_tracker, push_backlog
from orchestrator.tracking.push import SendingThread
from orchestrator.tracking.spool import TrackedRun
from orchestrator.tracking.tags import tracked_run
from policies.base.errors import TrackingError
from tests.support.mlflow_server import MlflowServer, free_port
from tests.support.run_folders import RUN_ID, add_round, make_run, phase_seconds, start_run

pytestmark = [
    pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy is deprecated"),
]
DRIVER_WAITS_AT_MOST = 0.1
LONGEST_HICCUP = 1.0
"""Of one call on a busy machine."""


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """The sink sets variables for MLflow; they end with the test."""
    monkeypatch.setattr(os, "environ", os.environ.copy())
    monkeypatch.setattr(SendingThread, "FIRST_DELAY", 0.2)
    monkeypatch.setattr(SendingThread, "LONGEST_DELAY", 0.5)


@pytest.fixture(scope="session")
def empty_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A migrated database: MLflow takes seconds to make one."""
    path = tmp_path_factory.mktemp("mlflow") / "empty.db"
    code = "import sys; from mlflow.tracking import MlflowClient; MlflowClient(sys.argv[1]).search_experiments()"
    subprocess.run(
        [sys.executable, "-c", code, f"sqlite:///{path}"], check=True, capture_output=True
    )
    return path


@pytest.fixture
def database(empty_database: Path, tmp_path: Path) -> Path:
    path = tmp_path / "mlflow.db"
    path.write_bytes(empty_database.read_bytes())
    return path


def settings(uri: str | Path, **changes: Any) -> TrackingSettings:
    address = f"sqlite:///{uri}" if isinstance(uri, Path) else uri
    return TrackingSettings(uri=address, experiment="multiply", timeout_seconds=10, **changes)


def described(folder: RunFolder, *, resumed: bool = False) -> TrackedRun:
    return tracked_run(
        run_id=RUN_ID,
        name=folder.path.name,
        experiment="multiply",
        config=json.loads(folder.config.read_text(encoding="utf-8")),
        config_digest="c0ffee",
        model_digest="beef",
        reference="refresh",
        resumed=resumed,
    )


def tell(tracker: Tracker, folder: RunFolder, *rounds: int) -> None:
    for result in results_of(folder):
        if result.round in rounds:
            tracker.round_finished(result, phase_seconds(result.round), folder.round(result.round))


def client(uri: str | Path) -> Any:
    from mlflow.tracking import MlflowClient

    return MlflowClient(f"sqlite:///{uri}" if isinstance(uri, Path) else uri)


def runs_of(mlflow: Any) -> tuple[Any, dict[str, Any]]:
    """The one parent run, and its nested runs by name."""
    experiment = mlflow.get_experiment_by_name("multiply").experiment_id
    runs = mlflow.search_runs([experiment])
    parents = [r for r in runs if "mlflow.parentRunId" not in r.data.tags]
    assert len(parents) == 1
    nested = [r for r in runs if r.data.tags.get("mlflow.parentRunId") == parents[0].info.run_id]
    assert len(nested) == len(runs) - 1
    by_name = {r.info.run_name: r for r in nested}
    assert len(by_name) == len(nested)
    return parents[0], by_name


def finished_runs(mlflow: Any) -> set[str]:
    """Names of the runs that have ended so far."""
    experiment = mlflow.get_experiment_by_name("multiply")
    runs = mlflow.search_runs([experiment.experiment_id]) if experiment else []
    return {r.info.run_name for r in runs if r.info.status == "FINISHED"}


def history(mlflow: Any, run: Any, metric: str) -> list[tuple[int, float]]:
    return [(m.step, m.value) for m in mlflow.get_metric_history(run.info.run_id, metric)]


def test_a_run_lands_whole_in_a_sqlite_store(
    database: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, warnings = make_run(tmp_path / "runs" / "q-1"), list[str]()
    tracker = make_tracker(
        settings(database, register_policy=True), folder, on_warning=warnings.append
    )
    tracker.start(described(folder))
    tell(tracker, folder, 0, 1, 2)
    tracker.finish("FINISHED")
    assert warnings == []

    mlflow = client(database)
    parent, nested = runs_of(mlflow)
    assert (parent.info.run_name, parent.info.status) == ("q-1", "FINISHED")
    assert {n: r.info.status for n, r in nested.items()} == dict.fromkeys(
        ["round 0", "round 1", "round 2"], "FINISHED"
    )
    assert history(mlflow, parent, "eval/pass_at_1") == [(0, 0.29), (1, 0.39), (2, 0.55)]
    assert history(mlflow, parent, "seconds/train") == [(1, 3.5), (2, 3.5)]
    assert [s for s, _ in history(mlflow, nested["round 2"], "train/loss")] == [1, 2, 3]
    assert parent.data.params["training.loss.beta"] == "0.1"
    assert parent.data.params["verifiers.0.type"] == "numeric_match"
    assert parent.data.tags["pawl.config_digest"] == "c0ffee"
    assert parent.data.tags["pawl.version.trl"]
    assert {a.path for a in mlflow.list_artifacts(parent.info.run_id)} == {
        "report.html",
        "report.md",
    }
    assert (tmp_path / "mlartifacts").is_dir()

    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{database}")
    table = mlflow.load_table(
        parent.info.experiment_id, "samples.json", [nested["round 1"].info.run_id]
    )
    assert len(table) == 12
    assert list(table["completion"][:3]) == ["It is 6.", "It is 20.", "It is 56."]
    assert set(table["desirable"]) == {True, False}
    pairs = mlflow.load_table(
        parent.info.experiment_id, "pairs.json", [nested["round 2"].info.run_id]
    )
    assert list(pairs.columns[:4]) == ["id", "prompt", "chosen", "rejected"]
    names = {a.path for a in mlflow.list_artifacts(nested["round 0"].info.run_id)}
    assert names == {"evaluation_samples.json"}

    versions = mlflow.search_model_versions("name = 'multiply'")
    assert sorted((int(v.version), v.tags["pawl.round"]) for v in versions) == [(1, "1"), (2, "2")]
    assert {v.source for v in versions} == {
        str(folder.policies / "0001"),
        str(folder.policies / "0002"),
    }


@pytest.mark.parametrize("lost", ["nothing", "runs.json", "offset.json"])
def test_a_resumed_run_goes_on_in_the_same_parent_run(
    database: Path, tmp_path: Path, lost: str
) -> None:
    folder = start_run(tmp_path / "q-1")
    for index in (0, 1):
        add_round(folder, index)
    first = make_tracker(settings(database, register_policy=True), folder, on_warning=pytest.fail)
    first.start(described(folder))
    tell(first, folder, 0, 1)
    first.finish("KILLED", "interrupted")
    mlflow = client(database)
    before, _ = runs_of(mlflow)
    assert (before.info.status, before.data.tags["pawl.reason"]) == ("KILLED", "interrupted")

    if lost != "nothing":
        (folder.tracking / lost).unlink()
    add_round(folder, 2)
    second = make_tracker(settings(database, register_policy=True), folder, on_warning=pytest.fail)
    second.start(described(folder, resumed=True))
    tell(second, folder, 0, 1, 2)
    second.finish("FINISHED")
    after, nested = runs_of(mlflow)
    assert after.info.run_id == before.info.run_id
    assert after.info.status == "FINISHED"
    assert "pawl.reason" not in after.data.tags
    assert after.data.tags["pawl.resumed"] == "true"
    assert sorted(nested) == ["round 0", "round 1", "round 2"]
    assert history(mlflow, after, "eval/pass_at_1") == [(0, 0.29), (1, 0.39), (2, 0.55)]
    assert len(mlflow.search_model_versions("name = 'multiply'")) == 2
    samples = mlflow.download_artifacts(
        nested["round 1"].info.run_id, "samples.json", str(tmp_path)
    )
    assert len(json.loads(Path(samples).read_text(encoding="utf-8"))["data"]) == 12


def test_a_locked_database_is_waited_for(database: Path, tmp_path: Path) -> None:
    folder = make_run(tmp_path / "q-1", rounds=1)
    lock = sqlite3.connect(database, isolation_level=None)
    lock.execute("BEGIN EXCLUSIVE")
    tracker = make_tracker(settings(database), folder, on_warning=lambda _: None)
    began = time.monotonic()
    tracker.start(described(folder))
    tell(tracker, folder, 0, 1)
    assert time.monotonic() - began < LONGEST_HICCUP
    time.sleep(3)
    lock.execute("ROLLBACK")
    lock.close()
    tracker.finish("FINISHED")
    parent, nested = runs_of(client(database))
    assert parent.info.status == "FINISHED"
    assert sorted(nested) == ["round 0", "round 1"]


def timed(call: Callable[[], None], spent: list[float]) -> None:
    began = time.monotonic()
    call()
    spent.append(time.monotonic() - began)


def test_everything_lands_once_on_a_server_that_is_killed_and_started_again(
    empty_database: Path, tmp_path: Path
) -> None:
    folder, warnings, spent = make_run(tmp_path / "q-1"), list[str](), list[float]()
    server = MlflowServer(tmp_path)
    server.database.write_bytes(empty_database.read_bytes())
    with server:
        tracker = make_tracker(
            settings(server.uri, register_policy=True), folder, on_warning=warnings.append
        )
        timed(lambda: tracker.start(described(folder)), spent)
        timed(lambda: tell(tracker, folder, 0), spent)
        mlflow = client(server.database)
        wait_until(lambda: "round 0" in finished_runs(mlflow))
        server.stop()
        timed(lambda: tell(tracker, folder, 1), spent)
        wait_until(lambda: len(warnings) == 1)
        timed(lambda: tell(tracker, folder, 2), spent)
        server.start()
        tracker.finish("FINISHED")
        parent, nested = runs_of(mlflow)
        assert parent.info.status == "FINISHED"
        assert sorted(nested) == ["round 0", "round 1", "round 2"]
        assert history(mlflow, parent, "eval/pass_at_1") == [(0, 0.29), (1, 0.39), (2, 0.55)]
        assert [s for s, _ in history(mlflow, nested["round 1"], "train/loss")] == [1, 2, 3]
        versions = mlflow.search_model_versions("name = 'multiply'")
        assert sorted(v.tags["pawl.path"] for v in versions) == [
            str(folder.policies / f"000{n}") for n in (1, 2)
        ]
        assert {v.source for v in versions} == {
            f"runs:/{nested[f'round {n}'].info.run_id}/policy" for n in (1, 2)
        }
    assert median(spent) < DRIVER_WAITS_AT_MOST
    assert max(spent) < LONGEST_HICCUP
    assert len(warnings) == 2
    assert warnings[0].startswith(f"tracking server at {server.uri} does not answer (")
    assert (
        warnings[1] == f"tracking server at {server.uri} answers again; all kept metrics were sent"
    )


def test_a_run_that_failed_before_it_was_described_sends_nothing_and_does_not_wait(
    tmp_path: Path,
) -> None:
    folder, warnings = start_run(tmp_path / "q-1"), list[str]()
    away = settings(f"http://127.0.0.1:{free_port()}")
    tracker = make_tracker(away, folder, on_warning=warnings.append)
    began = time.monotonic()
    tracker.finish("FAILED", "no such model")
    assert time.monotonic() - began < 5
    assert warnings == []


def test_what_a_run_left_behind_is_sent_later(
    database: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("orchestrator.tracking.tracker.FINISH_TIMEOUT", 1.0)
    folder, warnings = make_run(tmp_path / "q-1"), list[str]()
    away = settings(f"http://ann:s3cr3t@127.0.0.1:{free_port()}")
    tracker = make_tracker(away, folder, on_warning=warnings.append)
    tracker.start(described(folder))
    tell(tracker, folder, 0, 1, 2)
    tracker.finish("FAILED", "the driver ran out of disk")
    assert len(warnings) == 2
    assert "5 tracking entries could not be sent" in warnings[1]
    assert "s3cr3t" not in "".join(warnings)
    with pytest.raises(TrackingError) as caught:
        push_backlog(folder, away, on_warning=pytest.fail)
    assert "s3cr3t" not in str(caught.value)

    assert push_backlog(folder, settings(database), on_warning=pytest.fail) == 5
    assert push_backlog(folder, settings(database), on_warning=pytest.fail) == 0
    parent, nested = runs_of(client(database))
    assert (parent.info.status, parent.data.tags["pawl.reason"]) == (
        "FAILED",
        "the driver ran out of disk",
    )
    assert sorted(nested) == ["round 0", "round 1", "round 2"]


def test_names_and_values_that_mlflow_refuses_do_not_cost_the_others(
    database: Path, tmp_path: Path
) -> None:
    folder, warnings = start_run(tmp_path / "q-1"), list[str]()
    result = add_round(folder, 0)
    odd = {
        "verify/größe/score": 0.5,
        "x" * 300: 1.0,
        "../up": 2.0,
        "kl": float("nan"),
        "a\tb": float("inf"),
    }
    tracker = make_tracker(settings(database), folder, on_warning=warnings.append)
    tracker.start(described(folder))
    tracker.round_finished(
        result.model_copy(update={"metrics": {**result.metrics, **odd}}), {}, folder.round(0)
    )
    tracker.finish("FINISHED")
    parent, _ = runs_of(client(database))
    assert sorted(parent.data.metrics.values()) == [0.29, 0.5, 0.9, 1.0, 2.0]
    assert len(warnings) == 2


def wait_until(condition: Callable[[], bool], timeout: float = 60.0) -> None:
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline, "condition did not come true"
        time.sleep(0.1)
