"""What a run that has ended left unsent reaches the tracking server and the bucket when it is resumed."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from orchestrator.cli.app import app
from orchestrator.driver.launch import run_experiment
from orchestrator.driver.unsent import send_unsent, unsent_entries
from orchestrator.runs.folder import RunFolder
from tests.support.fake_runs import fake_config
from tests.support.s3_server import s3_server

pytestmark = [
    pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy is deprecated"),
]


@pytest.fixture(autouse=True)
def _environment() -> Iterator[None]:
    """The sink sets variables for MLflow; they end with the test."""
    before = dict(os.environ)
    yield
    for name in os.environ.keys() - before.keys():
        del os.environ[name]
    os.environ.update(before)


def resume(run: RunFolder) -> Result:
    return CliRunner().invoke(app, ["resume", str(run.path)])


def runs_in(store: Path) -> list[tuple[str, str]]:
    """Name and status of every run in an MLflow store."""
    from mlflow.tracking import MlflowClient

    mlflow = MlflowClient(f"sqlite:///{store}")
    experiments = [e.experiment_id for e in mlflow.search_experiments()]
    return sorted((r.info.run_name, r.info.status) for r in mlflow.search_runs(experiments))


def test_resume_of_a_finished_run_sends_what_a_store_in_trouble_did_not_take(
    tmp_path: Path,
) -> None:
    store = tmp_path / "mlflow.db"
    store.write_text("somebody's notes\n" * 100)
    run = RunFolder(tmp_path / "q-1")
    tracking = {"uri": f"sqlite:///{store}", "experiment": "later"}
    run_experiment(fake_config(tmp_path, rounds=1, tracking=tracking), run, source="")
    kept = unsent_entries(run)
    assert kept >= 4  # its start, two rounds, its end
    warnings = run.events.read_text(encoding="utf-8")
    assert "takes nothing" in warnings
    assert "does not answer" not in warnings
    refused = resume(run)
    assert refused.exit_code == 75, refused.output
    assert f"{kept} entries are kept" in refused.stderr
    assert "move the file away" in refused.stderr
    store.rename(tmp_path / "notes.txt")  # the remedy
    done = resume(run)
    assert done.exit_code == 0, done.output
    assert f"{kept} kept tracking entries were sent" in done.output
    assert runs_in(store) == [("q-1", "FINISHED"), ("round 0", "FINISHED"), ("round 1", "FINISHED")]
    again = resume(run)
    assert (again.exit_code, "tracking entries" in again.output) == (0, False)


def test_resume_of_a_finished_run_brings_its_copy_up_to_date(tmp_path: Path) -> None:
    with s3_server() as server:
        run = RunFolder(tmp_path / "copied")
        storage = {"url": "s3://models/later", "endpoint_url": server}
        run_experiment(fake_config(tmp_path, rounds=1, storage=storage), run, source="")
        assert not send_unsent(run).copied  # nothing was missing
        from orchestrator.config.bucket_location import Location
        from orchestrator.storage.bucket import Bucket

        bucket = Bucket(Location("models", "later/copied"), server, 20)
        bucket.put("journal.jsonl", run.journal.read_bytes()[:200])  # as it was some phases ago
        bucket.remove("rounds/0001/prompts.parquet")
        done = resume(run)
        assert done.exit_code == 0, done.output
        assert "the copy in the bucket was behind and has caught up" in done.output
        assert bucket.read("journal.jsonl") == run.journal.read_bytes()
        assert "rounds/0001/prompts.parquet" in bucket.names()
    away = resume(run)
    assert away.exit_code == 75, away.output
    assert "storage.endpoint_url" in away.stderr


@pytest.mark.slow
@pytest.mark.parametrize("attempt", range(3))
def test_eight_runs_that_begin_at_once_all_finish_and_all_land_in_the_new_store(
    tmp_path: Path, attempt: int
) -> None:
    command = [sys.executable, "-m", "orchestrator.cli", "run", "fake-smoke", "rounds=1"]
    command += ["cluster.backend=inline", "tracking.enabled=true", "tracking.experiment=sweep"]
    options: dict[str, Any] = {"cwd": tmp_path, "stdout": subprocess.PIPE, "text": True}
    options |= {"stderr": subprocess.STDOUT}
    options["env"] = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    started = [subprocess.Popen([*command, f"seed={i}"], **options) for i in range(8)]
    said = [process.communicate(timeout=600)[0] for process in started]
    assert [process.returncode for process in started] == [0] * 8, said
    assert len(list((tmp_path / "runs").iterdir())) == 8
    for folder in (tmp_path / "runs").iterdir():
        send_unsent(RunFolder(folder))
    parents = [name for name, status in runs_in(tmp_path / "mlflow.db") if name.startswith("sweep")]
    assert len(parents) == 8
