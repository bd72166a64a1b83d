"""The doctor: what it says about a stuck, failed, killed or damaged run, and about a config on this machine."""

from __future__ import annotations

import json
import os
import sqlite3
import time
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
from typer.testing import CliRunner

from orchestrator.cli.app import app
from orchestrator.config.files import load_config
from orchestrator.driver.launch import resume_experiment, run_experiment
from orchestrator.inspect.doctor.diagnose import diagnose
from orchestrator.inspect.doctor.diagnosis import Diagnosis
from orchestrator.inspect.doctor.run import examine_run
from orchestrator.runs.events import Event, EventKind, EventLog
from orchestrator.runs.folder import RunFolder
from orchestrator.tracking.spool import FinishLine, Spool
from policies.base.machine_identity import boot_id, pid_namespace
from policies.base.process_identity import process_start
from policies.storage.artifacts import write_json


def invoke(*arguments: object) -> tuple[int, str, str]:
    done = CliRunner().invoke(app, [str(a) for a in arguments])
    return done.exit_code, done.stdout, done.stderr


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    """A finished run of one round."""
    found = RunFolder(tmp_path / "run")
    run_experiment(load_config("fake-smoke", ["rounds=1"]).config, found, source="")
    return found


def told(diagnosis: Diagnosis, what: str) -> str:
    """Evidence and fix of the one finding that speaks of `what`."""
    found = [f for f in diagnosis.findings if what in f.what]
    assert len(found) == 1, [f.what for f in diagnosis.findings]
    assert found[0].evidence
    assert found[0].fix
    return f"{found[0].evidence} / {found[0].fix}"


def reopen(folder: RunFolder) -> EventLog:
    """The run as if it were going on."""
    lines = folder.events.read_text().splitlines(keepends=True)
    folder.events.write_text("".join(line for line in lines if "run_finished" not in line))
    return EventLog(folder.events)


def drive_by(folder: RunFolder, **claim: Any) -> None:
    """Let another driver hold the run."""
    for path in folder.epochs.glob("*.json"):
        path.unlink()
    facts = {"epoch": 0, "host": "elsewhere", "pid": 71, "heartbeat": time.time(), "beats": 3}
    if claim.get("host") == os.uname().nodename:
        claim = {"boot_id": boot_id(), "pid_namespace": pid_namespace()} | claim
    write_json(folder.driver, facts | claim)


def by_this_process(folder: RunFolder) -> None:
    pid = os.getpid()
    drive_by(folder, host=os.uname().nodename, pid=pid, pid_started=process_start(pid))


def test_a_finished_run_is_healthy_and_exits_0(folder: RunFolder) -> None:
    code, out, err = invoke("doctor", folder.path)
    assert (code, err) == (0, ""), out
    assert "nothing is wrong" in out
    assert "is finished" in out


def test_a_failed_run_is_explained_with_its_phase_cause_and_way_out(tmp_path: Path) -> None:
    engine = "rollout.engine.fail_prompts_matching=."
    code, _, _ = invoke("run", "fake-smoke", engine, "--runs-dir", tmp_path, "--name", "bad")
    assert code == 1
    code, out, _ = invoke("doctor", tmp_path / "bad", "--json")
    assert code == 1
    found = json.loads(out)
    assert found["healthy"] is False
    (finding,) = found["findings"]
    assert finding["what"] == "the run failed in round 0, evaluate: RolloutError"
    assert "told to fail" in finding["evidence"]
    assert f"pawl resume {tmp_path / 'bad'}" in finding["fix"]


def test_the_log_of_a_worker_that_died_is_quoted_when_it_is_on_this_machine(
    folder: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    logs = tmp_path / "ray" / "session_2026-11-21" / "logs"
    logs.mkdir(parents=True)
    (logs / "worker-9f-01-71.err").write_text("first\n\nCUDA error: \x1b[31mout of memory\n")
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    message = "rollout 0: sample: the worker died (process 71 on node 4f). Fix: smaller batches"
    reopen(folder).emit(EventKind.RUN_FAILED, error="WorkerLostError", message=message)
    said = told(examine_run(folder), "the run failed")
    assert "CUDA error" in said
    assert "\x1b" not in said
    assert said.endswith("/ smaller batches")


def test_a_driver_that_died_without_a_word_is_told_from_one_that_was_stopped(
    folder: RunFolder,
) -> None:
    events = reopen(folder)
    drive_by(folder, host=os.uname().nodename, pid=2**30)
    assert "--supervise" in told(examine_run(folder), "died without a word")
    events.emit(EventKind.RUN_INTERRUPTED)
    assert "pawl resume" in told(examine_run(folder), "stopped on request")


def test_a_driver_elsewhere_whose_heartbeat_stands_still_is_named(folder: RunFolder) -> None:
    reopen(folder)
    drive_by(folder)
    assert examine_run(folder).findings == []
    drive_by(folder, heartbeat=time.time() - 600, beats=3)
    found = examine_run(folder)
    assert (
        "died without a word" in found.findings[0].what or "stands still" in found.findings[0].what
    )


def call(**changes: Any) -> dict[str, Any]:
    row = {"worker": "rollout 0", "call": "sample shard-0003", "standing": "running in process 71"}
    facts = {"running": True, "seconds": 400.0, "quiet_seconds": 390.0, "process": "n1:71"}
    return row | facts | {"counts": {"tokens": 120.0}} | changes


def act(folder: RunFolder, *calls: dict[str, Any], ago: float = 0.0) -> None:
    reopen(folder)
    by_this_process(folder)
    at = datetime.now(UTC) - timedelta(seconds=ago)
    write_json(folder.activity, {"at": at.isoformat(), "host": "h", "pid": 1, "calls": list(calls)})


def test_a_silent_worker_is_named_with_what_it_had_done(folder: RunFolder) -> None:
    act(folder, call(), call(worker="rollout 1", quiet_seconds=2.0))
    said = told(examine_run(folder), "rollout 0 gives no sign of life")
    assert "120 tokens" in said
    assert "cluster.silence_timeout_seconds" in said


def test_a_call_that_no_worker_takes_up_is_named(folder: RunFolder) -> None:
    waiting = {"running": False, "quiet_seconds": None, "standing": "waits for a worker"}
    act(folder, call(worker="train 0", call="update round 1", **waiting))
    said = told(examine_run(folder), "train 0 has not been able to start a call")
    assert "waits for a worker" in said
    assert "ray status" in said


def test_a_driver_that_does_not_look_at_its_workers_is_named(folder: RunFolder) -> None:
    act(folder, call(seconds=1.0, quiet_seconds=0.5), ago=100.0)
    assert "py-spy" in told(examine_run(folder), "has not looked at its workers")


def test_a_crash_loop_is_named(folder: RunFolder) -> None:
    events = reopen(folder)
    for _ in range(3):
        events.emit(EventKind.RUN_STARTED, resumed=True, rounds=1, name="run")
    assert "pawl --debug resume" in told(
        examine_run(folder), "the last 3 drivers finished no phase"
    )


def test_an_edited_config_and_a_torn_journal_are_named(folder: RunFolder) -> None:
    config = json.loads(folder.config.read_text())
    write_json(folder.config, config | {"seed": 99})
    assert "undo the edit" in told(examine_run(folder), "config of the run was edited")
    write_json(folder.config, config)
    lines = folder.journal.read_bytes().split(b"\n")
    folder.journal.write_bytes(b"\n".join([b"{", *lines[1:]]))
    assert "pawl verify" in told(examine_run(folder), "state of the run cannot be read")


def test_what_was_not_sent_and_what_is_in_quarantine_is_counted(folder: RunFolder) -> None:
    Spool(folder.tracking).append(FinishLine(at=1, status="FINISHED", reason=""))
    folder.quarantine.mkdir()
    write_json(folder.quarantine / "p.reason.json", {"item": "2x3", "why": "killed its worker"})
    found = examine_run(folder)
    assert "pawl resume" in told(found, "1 tracking entries have not been sent")
    assert "2x3 killed its worker" in told(found, "1 items are in quarantine")


def test_the_doctor_changes_nothing(folder: RunFolder) -> None:
    before = {p: p.stat().st_mtime_ns for p in folder.path.rglob("*")}
    examine_run(folder)
    assert {p: p.stat().st_mtime_ns for p in folder.path.rglob("*")} == before


# --- a config on this machine ---------------------------------------------------------------------


def test_a_config_that_can_run_here_is_healthy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    code, out, err = invoke("doctor", "fake-smoke")
    assert (code, err) == (0, ""), out
    assert list(tmp_path.iterdir()) == [], "nothing is left behind"


def test_neither_a_run_nor_a_config_is_2(tmp_path: Path) -> None:
    assert invoke("doctor", tmp_path / "nothing.yaml")[0] == 2
    assert invoke("doctor", "fake-smoke", "rounds=0")[0] == 2


def test_a_tracking_server_that_is_away_or_in_trouble_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    tracking = ["tracking.enabled=true", "tracking.uri=http://127.0.0.1:9/"]
    said = told(diagnose("fake-smoke", tracking), "tracking server does not answer")
    assert "tracking.uri" in said

    class Broken(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_error(500)

        def log_message(self, format: str, *args: object) -> None:
            """Not here."""

    server = HTTPServer(("127.0.0.1", 0), Broken)
    thread = Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        tracking[1] = f"tracking.uri=http://127.0.0.1:{server.server_port}"
        said = told(diagnose("fake-smoke", tracking), "tracking server does not answer")
        assert "it answers 500" in said
    finally:
        server.shutdown()
        server.server_close()
        thread.join(10)


def test_a_locked_tracking_database_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    store = sqlite3.connect(tmp_path / "m.db")
    store.execute("CREATE TABLE t (x)")
    store.execute("BEGIN EXCLUSIVE")
    try:
        tracking = ["tracking.enabled=true", f"tracking.uri=sqlite:///{tmp_path / 'm.db'}"]
        assert "locked" in told(diagnose("fake-smoke", tracking), "database cannot be written now")
    finally:
        store.close()


def test_a_cluster_that_does_not_answer_and_few_open_files_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("orchestrator.inspect.doctor.machine._OPEN_FILES", 2**40)
    overrides = ["cluster.backend=ray", "cluster.address=127.0.0.1:9"]
    found = diagnose("fake-smoke", overrides)
    assert "127.0.0.1:9" in told(found, "Ray cluster does not answer")
    assert "ulimit -n" in told(found, "few open files")


def test_a_place_that_cannot_be_written_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "runs").write_text("a file, and no folder")
    monkeypatch.chdir(tmp_path)
    found = diagnose("fake-smoke")
    assert [f.fix for f in found.findings if f.what == "run folders cannot be written"]


def test_events_of_a_resumed_run_end_its_troubles(folder: RunFolder) -> None:
    reopen(folder)
    drive_by(folder, host=os.uname().nodename, pid=2**30)
    assert not examine_run(folder).healthy
    seen: list[Event] = []
    resume_experiment(folder, [seen.append])
    assert seen[-1].kind is EventKind.RUN_FINISHED
    assert examine_run(folder).healthy
