"""The whole Ray cluster dies under a run: the run ends soon, with the cause and the exit code for "try again"."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import psutil

from tests.support.started_process import ended_after


def wait_for_sampling(run: subprocess.Popen[str], events: Path) -> None:
    """Return when round 1 collects, so that the workers are in the middle of their work."""
    deadline = time.monotonic() + 120
    while not (events.is_file() and '"collect"' in events.read_text(encoding="utf-8")):
        assert run.poll() is None, run.communicate()[1][-3000:]
        assert time.monotonic() < deadline, "the run did not get to work"
        time.sleep(0.2)


def test_a_run_whose_control_plane_dies_ends_within_a_minute_with_exit_code_75(
    tmp_path: Path,
) -> None:
    command = [str(Path(sys.executable).with_name("pawl")), "run", "fake-smoke", "--name", "lost"]
    command += ["cluster.backend=ray", "cluster.num_cpus=2", "cluster.lost_after_seconds=10"]
    command += ["rollout.engine.seconds_per_call=3"]
    process = subprocess.Popen(
        command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    with ended_after(process) as run:
        wait_for_sampling(run, tmp_path / "runs" / "lost" / "events.jsonl")
        (control,) = [
            p for p in psutil.Process(run.pid).children(recursive=True) if "gcs_server" in p.name()
        ]
        control.kill()
        started = time.monotonic()
        _, told = run.communicate(timeout=120)
        seconds = time.monotonic() - started
    assert run.returncode == 75, told[-3000:]
    for part in ("control plane", "cluster.lost_after_seconds", "pawl resume"):
        assert part in told
    assert seconds < 60
