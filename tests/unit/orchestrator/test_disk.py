"""Room on the disk: said beforehand, and when it runs out the run stops cleanly and goes on after room is made."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

from orchestrator.cli.app import app
from orchestrator.config.files import load_config
from orchestrator.driver.launch import resume_experiment, run_experiment
from orchestrator.rounds.disk import (
    bytes_of_a_round,
    bytes_of_checkpoints,
    folder_bytes,
    weights_bytes,
)
from orchestrator.runs.events import Event, EventKind, EventLog
from orchestrator.runs.folder import RunFolder
from orchestrator.runs.journal import Journal
from orchestrator.runs.phases import Phase, Trained
from orchestrator.runs.state import read_run_events, results_of
from policies.base.errors import StorageError
from policies.objectives.reference import ReferencePart, ReferencePlan
from tests.support.run_folders import make_run
from workers.training.engine import UpdateOutcome

ROOT = Path(__file__).resolve().parents[3]


def invoke(*arguments: object) -> tuple[int, str, str]:
    done = CliRunner().invoke(app, [str(a) for a in arguments])
    return done.exit_code, done.stdout, done.stderr


def test_a_round_is_expected_to_write_what_the_rounds_before_did_and_weights(
    tmp_path: Path,
) -> None:
    folder = make_run(tmp_path / "run", rounds=2)
    (folder.round(2).path / "big").write_bytes(b"x" * 50_000)
    size = folder_bytes(folder.round(2).path)
    assert size > 50_000
    assert bytes_of_a_round(folder, 3) == size + weights_bytes(folder)
    assert weights_bytes(folder) == len(b"weights of version 2")
    assert bytes_of_a_round(RunFolder(tmp_path / "none"), 0) == 0


@pytest.mark.parametrize(
    ("options", "number"),
    [
        ("checkpoint_seconds=600", 0),  # the updates before took 3.5 seconds
        ("checkpoint_seconds=3", 1),
        ("checkpoint_seconds=1", 2),  # two lie there while the second takes the place of the first
        ("checkpoint_seconds=0.1", 2),
        ("checkpoint_seconds=null", 0),
        ("checkpoint_steps=7", 0),  # 7 steps: none is written after the last
        ("checkpoint_steps=6", 1),
        ("checkpoint_steps=2", 2),
    ],
)
def test_checkpoints_are_counted_when_the_updates_before_were_long_enough(
    tmp_path: Path, options: str, number: int
) -> None:
    folder = make_run(tmp_path / "run", rounds=2)
    journal, events = Journal(folder.journal), EventLog(folder.events)
    outcome = UpdateOutcome(num_examples=7, num_steps=7, num_tokens=70)
    plan = ReferencePlan(parts=(ReferencePart(version=0, weight=1.0),))
    journal.append(2, Phase.TRAIN, Trained(reference=plan, logprobs="rollout", outcome=outcome))
    config = load_config("fake-smoke", [f"training.{options}", "rounds=9"]).config
    one = 3 * weights_bytes(folder)
    needed = bytes_of_checkpoints(config, folder, journal, events, 3)
    assert needed == number * one
    folder.round(3).checkpoints.mkdir(parents=True)
    (folder.round(3).checkpoints / "there-already").write_bytes(b"x" * 10)
    assert bytes_of_checkpoints(config, folder, journal, events, 3) == max(0, needed - 10)
    assert bytes_of_checkpoints(config, folder, journal, events, 1) == 0, "nothing is known yet"


def test_a_round_that_would_use_the_room_to_keep_free_is_not_begun_and_begun_after_all(
    tmp_path: Path,
) -> None:
    arguments = ("run", "fake-smoke", "rounds=1", "--runs-dir", tmp_path, "--name", "a")
    code, _, err = invoke(*arguments, "limits.min_free_gb=16384")
    assert code == 75, err
    assert "round 0 will write about" in err
    assert "Set by: the place of the run folder, and limits.min_free_gb" in err
    assert "pawl resume" in err
    folder = RunFolder(tmp_path / "a")
    assert results_of(folder) == []
    assert not folder.rounds()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of two megabytes."""
    place = tmp_path / "disk"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(place)]
    done = subprocess.run(mount, capture_output=True, text=True, timeout=30, check=False)
    if done.returncode:
        pytest.skip(f"no file system can be mounted here: {done.stderr.strip()}")
    yield place
    subprocess.run(["umount", str(place)], timeout=30, check=True)


def test_a_full_disk_stops_the_run_with_75_and_it_goes_on_after_room_is_made(
    small_disk: Path,
) -> None:
    config = load_config("fake-smoke", ["rounds=2"]).config
    folder = RunFolder(small_disk / "a")
    (small_disk / "ballast").write_bytes(b"x" * 1_928_000)
    with pytest.raises(
        StorageError, match="the disk is full"
    ):  # past the preflight, which refuses it
        run_experiment(config, folder, source="")
    assert len(results_of(folder)) < 3
    code, _, err = invoke("resume", folder.path)
    assert code == 75, "as long as the disk is full"
    assert "make room; then `pawl resume`" in err
    (small_disk / "ballast").unlink()
    code, _, err = invoke("resume", folder.path)
    assert code == 0, err
    assert [result.round for result in results_of(folder)] == [0, 1, 2]
    assert invoke("verify", folder.path)[0] == 0


def test_a_limit_on_the_size_of_files_stops_the_run_with_75_too(tmp_path: Path) -> None:
    code = (
        "import resource, signal, sys\n"
        "from orchestrator.cli.app import main\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (12000, 12000))\n"
        f"sys.argv = ['pawl', 'run', 'fake-smoke', 'rounds=1', '--runs-dir', {str(tmp_path)!r}, '--name', 'a']\n"
        "main()\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env=dict(os.environ),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 75, done.stderr
    assert "ulimit -f" in done.stderr
    assert invoke("resume", tmp_path / "a")[0] == 0


def test_a_run_that_will_not_fit_is_warned_of_before_it_begins(small_disk: Path) -> None:
    config = load_config("fake-smoke", ["rounds=900"]).config
    folder = RunFolder(small_disk / "a")

    def stop(event: Event) -> None:
        if event.round == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_experiment(config, folder, source="", observers=[stop])
    with pytest.raises(KeyboardInterrupt):
        resume_experiment(folder, [stop])
    warnings = [e for e in read_run_events(folder) if e.kind is EventKind.WARNING]
    assert any("the rest of the run will write" in str(w.detail["message"]) for w in warnings)
