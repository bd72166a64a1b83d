"""The supervisor: what is started again, what is not, and that a run goes on whatever killed its driver."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from orchestrator.driver.supervise import Supervisor
from orchestrator.runs.folder import RunFolder
from orchestrator.runs.state import read_run_events, results_of
from tests.support.fake_runs import fake_tree
from tests.support.heavy_imports import loaded_by

ROOT = Path(__file__).resolve().parents[3]
DRIVER = Path(__file__).with_name("supervised_driver.py")


def config(tmp_path: Path, **engine: float) -> Path:
    tree = fake_tree(tmp_path)
    tree["rollout"]["engine"] |= engine
    path = tmp_path / "config.json"
    path.write_text(json.dumps(tree))
    return path


class Case:
    """A supervisor over the scripted driver."""

    def __init__(self, tmp_path: Path, *ends: str) -> None:
        self.folder = RunFolder(tmp_path / "run")
        self.ends = tmp_path / "ends"
        self.ends.write_text("\n".join(ends))
        self.said: list[str] = []
        self.command = [sys.executable, str(DRIVER), str(self.ends)]
        self.start = ["run", str(self.folder.path), str(config(tmp_path))]

    def run(self, max_restarts: int = 2) -> int:
        return Supervisor(
            self.command,
            self.start,
            max_restarts=max_restarts,
            wait_seconds=0.01,
            tell=self.said.append,
        ).run()

    def log(self) -> list[str]:
        return self.ends.with_suffix(".log").read_text().splitlines()


def test_a_driver_killed_in_phase_after_phase_is_resumed_until_the_run_is_done(
    tmp_path: Path,
) -> None:
    kills = ["kill:0:draw", "kill:1:collect", "kill:1:train", "kill:1:publish", "kill:2:evaluate"]
    case = Case(tmp_path, *kills)
    assert case.run(max_restarts=2) == 0
    assert case.log() == [f"run {kills[0]}", *(f"resume {kill}" for kill in kills[1:]), "resume go"]
    assert [result.round for result in results_of(case.folder)] == [0, 1, 2]
    started = [e for e in read_run_events(case.folder) if e.kind.value == "run_started"]
    assert len(started) == 6
    assert len(case.said) == 5
    assert "was killed by SIGKILL; restart 1 of 2" in case.said[0]


@pytest.mark.parametrize("code", [0, 1, 2, 3, 130])
def test_an_end_that_a_restart_cannot_mend_is_final(tmp_path: Path, code: int) -> None:
    case = Case(tmp_path, f"exit:{code}", "go")
    assert case.run() == code
    assert case.log() == [f"run exit:{code}"]


def test_a_crash_loop_ends_and_says_which_setting_ended_it(tmp_path: Path) -> None:
    case = Case(tmp_path, *["kill:1:train"] * 9)
    assert case.run(max_restarts=2) == 1
    # The first driver finished phases; the two restarts after it, and no more, got nowhere.
    assert len(case.log()) == 1 + 2
    assert "--max-restarts" in case.said[-1]
    assert str(case.folder.path) in case.said[-1]


def test_a_temporary_failure_that_stays_ends_with_75_for_whatever_supervises_us(
    tmp_path: Path,
) -> None:
    case = Case(tmp_path, *["exit:75"] * 9)
    assert case.run(max_restarts=1) == 75
    assert case.log() == ["run exit:75"] * 2, "no run began, so there is none to resume"


def test_waits_double_and_are_capped(tmp_path: Path) -> None:
    case = Case(tmp_path, *["exit:75"] * 9)
    case.run(max_restarts=3)
    waits = [line.rsplit(" in ", 1)[1] for line in case.said[:-1]]
    assert waits == ["0.01 s", "0.02 s", "0.04 s"]


def pawl(*arguments: object) -> subprocess.Popen[str]:
    """The command as a process of its own, as a shell or a service manager starts it."""
    return subprocess.Popen(
        [sys.executable, "-m", "orchestrator.cli", *(str(a) for a in arguments)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_for(path: Path, child: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 60
    while not path.exists():
        assert child.poll() is None, child.communicate(timeout=10)
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 75), (signal.SIGINT, 130)])
def test_a_signal_reaches_the_driver_and_is_not_answered_with_a_restart(
    tmp_path: Path, number: signal.Signals, code: int
) -> None:
    slow = ["rollout.engine.seconds_per_call=0.3", "rounds=1"]
    child = pawl(
        "run", "fake-smoke", *slow, "--supervise", "--runs-dir", tmp_path, "--name", "slow"
    )
    wait_for(tmp_path / "slow/rounds/0000/evaluate", child)
    child.send_signal(number)
    _, err = child.communicate(timeout=60)
    assert child.returncode == code, err
    assert "nothing that finished is lost" in err
    assert "restart" not in err


def test_the_driver_stops_when_its_supervisor_is_killed(tmp_path: Path) -> None:
    slow = ["rollout.engine.seconds_per_call=0.3", "rounds=1"]
    child = pawl(
        "run", "fake-smoke", *slow, "--supervise", "--runs-dir", tmp_path, "--name", "slow"
    )
    wait_for(tmp_path / "slow/rounds/0000/evaluate", child)
    driver = json.loads((tmp_path / "slow/driver.json").read_text())["pid"]
    assert driver != child.pid
    child.kill()
    child.communicate(timeout=60)
    deadline = time.monotonic() + 30
    while is_running(driver):
        assert time.monotonic() < deadline, "the driver lives on without its supervisor"
        time.sleep(0.02)
    events = [e.kind.value for e in read_run_events(RunFolder(tmp_path / "slow"))]
    assert events[-1] == "run_interrupted", "it stopped cleanly"


def is_running(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    return state.rpartition(")")[2].split()[0] != "Z"


def test_a_config_that_is_refused_is_not_tried_again(tmp_path: Path) -> None:
    child = pawl("run", "fake-smoke", "rounds=0", "--supervise", "--runs-dir", tmp_path)
    _, err = child.communicate(timeout=60)
    assert child.returncode == 2
    assert "supervisor" not in err
    assert list(tmp_path.iterdir()) == []


def test_the_supervisor_stays_small() -> None:
    heavy = ("ray", "torch", "pyarrow", "numpy", "mlflow", "transformers")
    assert loaded_by("import orchestrator.cli.app, orchestrator.driver.supervise", heavy) == []
