"""Killing the driver anywhere and resuming gives the journal and the examples of an uninterrupted run."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from orchestrator.runs.folder import RunFolder
from orchestrator.runs.journal import Journal
from policies.base.records import Trajectory
from policies.examples.kinds import PreferencePair
from policies.storage.artifacts import read_records
from policies.storage.fake_model import write_fake_model

DRIVER = Path(__file__).with_name("driver.py")
PHASES = ("draw", "collect", "train", "publish", "sync", "evaluate", "accept")


def config(tmp_path: Path, **cluster: Any) -> Path:
    write_fake_model(tmp_path / "model", skill=0.3)
    arithmetic = {"type": "arithmetic", "low": 2, "high": 6, "held_out": 5}
    tree = {
        "rounds": 2,
        "policy": {"model": str(tmp_path / "model")},
        "prompts": {
            "train": arithmetic | {"split": "train"},
            "held_out": arithmetic | {"split": "held_out"},
            "per_round": 9,
        },
        "rollout": {"engine": {"type": "fake"}, "samples_per_prompt": 4, "prompts_per_shard": 3},
        "verifiers": [{"type": "numeric_match"}],
        "preferences": {"type": "right_vs_wrong"},
        "training": {"engine": {"type": "fake"}},
        "cluster": {"backend": "inline"} | cluster,
        "tracking": {"enabled": False},
    }
    path = tmp_path / "config.json"
    path.write_text(json.dumps(tree), encoding="utf-8")
    return path


def drive(folder: Path, config_path: Path, moment: str = "never") -> int:
    """A driver that is started as any program; for real Ray."""
    command = [sys.executable, str(DRIVER), str(folder), str(config_path), moment]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode in (0, -signal.SIGKILL), done.stderr[-3000:]
    return done.returncode


class Drivers:
    """Drivers that are forks of one process, which has imported everything already."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, str(DRIVER), "--serve"],
            env={**os.environ, "PYTHONPATH": str(DRIVER.parents[2])},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def __call__(self, folder: Path, config_path: Path, moment: str = "never") -> int:
        log = folder.with_suffix(".log")
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(
            json.dumps([str(folder), str(config_path), moment, str(log)]) + "\n"
        )
        self._process.stdin.flush()
        code = int(self._process.stdout.readline())
        assert code in (0, -signal.SIGKILL), log.read_text()[-3000:]
        return code

    def close(self) -> None:
        with self._process:
            self._process.kill()


@pytest.fixture(scope="module")
def forked() -> Iterator[Drivers]:
    drivers = Drivers()
    yield drivers
    drivers.close()


def state(folder: Path) -> dict[str, Any]:
    """Everything that a run decides: journal bytes, and the ids of all trajectories and examples."""
    run = RunFolder(folder)
    found: dict[str, Any] = {"journal": run.journal.read_bytes().decode()}
    for index in run.rounds():
        for kind, record in (("trajectories", Trajectory), ("examples", PreferencePair)):
            rows = [r for p in run.round(index).shards(kind) for r in read_records(p, record)]  # type: ignore[arg-type]
            found[f"{index}/{kind}"] = [getattr(r, "id") for r in rows]  # noqa: B009 - one id on two types
            assert len(set(found[f"{index}/{kind}"])) == len(rows), "nothing twice"
    return found


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory, forked: Drivers) -> dict[str, Any]:
    tmp_path = tmp_path_factory.mktemp("whole")
    assert forked(tmp_path / "run", config(tmp_path)) == 0
    found = state(tmp_path / "run")
    assert len(found["2/trajectories"]) == 36
    assert found["2/examples"]
    return found


MOMENTS = [
    *(f"{when}:1:{phase}" for phase in PHASES for when in ("start", "journal")),
    "finished:1:accept",
    "stage:1:rollout:2",
    "stage:1:verify:1",
    "stage:2:prefer:2",
    "stage:0:rollout:1",
    "stage:2:grade:1",
    "journal:0:draw",
    "journal:0:accept",
    "journal:2:accept",
    # On the disk, the end of a phase is the start of the next one: proved again in the long run only.
    *(pytest.param(f"finished:1:{phase}", marks=pytest.mark.slow) for phase in PHASES[:-1]),
]


@pytest.mark.parametrize("moment", MOMENTS)
def test_a_killed_and_resumed_run_equals_an_uninterrupted_one(
    tmp_path: Path, moment: str, uninterrupted: dict[str, Any], forked: Drivers
) -> None:
    path = config(tmp_path)
    assert forked(tmp_path / "run", path, moment) == -signal.SIGKILL, "the fault must have happened"
    assert forked(tmp_path / "run", path) == 0
    assert state(tmp_path / "run") == uninterrupted


def test_two_kills_in_a_row_change_nothing_either(
    tmp_path: Path, uninterrupted: dict[str, Any], forked: Drivers
) -> None:
    path = config(tmp_path)
    for moment in ("stage:1:rollout:1", "journal:1:train", "start:2:evaluate"):
        assert forked(tmp_path / "run", path, moment) == -signal.SIGKILL
    assert forked(tmp_path / "run", path) == 0
    assert state(tmp_path / "run") == uninterrupted


@pytest.mark.parametrize(
    "moment",
    [
        "stage:1:rollout:2",  # workers are at it
        *(pytest.param(m, marks=pytest.mark.slow) for m in ("start:2:train", "journal:1:sync")),
    ],
)
def test_the_same_holds_on_ray(tmp_path: Path, moment: str, uninterrupted: dict[str, Any]) -> None:
    path = config(tmp_path, backend="ray", num_cpus=2)
    assert drive(tmp_path / "run", path, moment) == -signal.SIGKILL
    assert drive(tmp_path / "run", path) == 0
    # The config, and so nothing in the journal, differs between the two backends.
    assert state(tmp_path / "run") == uninterrupted


def test_resuming_a_finished_run_changes_nothing(tmp_path: Path, forked: Drivers) -> None:
    path = config(tmp_path)
    assert forked(tmp_path / "run", path) == 0
    before = state(tmp_path / "run")
    assert forked(tmp_path / "run", path) == 0
    assert state(tmp_path / "run") == before
    assert Journal(RunFolder(tmp_path / "run").journal).next_round() == 3
