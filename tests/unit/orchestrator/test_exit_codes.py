"""Exit codes: every way that a command ends has the number that tells a scheduler whether to try again."""

from __future__ import annotations

import errno
import inspect
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from typer.testing import CliRunner

from orchestrator.cli.app import app
from orchestrator.cli.output import exit_code_of
from orchestrator.driver.launch import run_experiment
from orchestrator.flow.stopping import InterruptedRun
from orchestrator.runs.folder import RunFolder
from policies.base import errors
from policies.base.errors import PawlError, RolloutError
from tests.support.fake_runs import fake_config
from tests.support.run_folders import make_run
from tests.support.started_process import ended_after

ROOT = Path(__file__).resolve().parents[3]
DO_NOT_RETRY = {"ConfigurationError": 2, "InputError": 2, "RunNotFoundError": 2, "ResumeError": 3}
RETRY = {"WorkerLostError": 75, "WaitTimeoutError": 75}
FAILED = {"TrainingError": 1, "DivergenceError": 1, "LimitExceededError": 1, "RolloutError": 1}


def invoke(*arguments: object) -> tuple[int, str, str]:
    done = CliRunner().invoke(app, [str(a) for a in arguments])
    return done.exit_code, done.stdout, done.stderr


@pytest.mark.parametrize(("name", "code"), [*(DO_NOT_RETRY | RETRY | FAILED).items()])
def test_an_error_says_whether_to_try_again(name: str, code: int) -> None:
    assert exit_code_of(getattr(errors, name)("x")) == code


def test_every_error_ends_with_a_documented_code() -> None:
    classes = [
        c for _, c in inspect.getmembers(errors, inspect.isclass) if issubclass(c, PawlError)
    ]
    assert len(classes) > 15
    assert {c.exit_code for c in classes} <= {1, 2, 3, 75}
    documented = (ROOT / "docs/operations.md").read_text()
    for code in (0, 1, 2, 3, 75, 130):
        assert re.search(rf"^\| {code} \|", documented, re.MULTILINE), f"{code} is not documented"


@pytest.mark.parametrize(
    ("number", "code"),
    [(errno.ENOSPC, 75), (errno.EDQUOT, 75), (errno.EIO, 75), (errno.EMFILE, 75), (errno.EBADF, 1)],
)
def test_a_machine_that_is_short_of_something_is_worth_another_try(number: int, code: int) -> None:
    wrapped = RolloutError("sampling failed")
    wrapped.__cause__ = OSError(number, os.strerror(number))
    assert exit_code_of(wrapped) == code
    assert exit_code_of(OSError(number, os.strerror(number))) == code


@pytest.mark.parametrize("name", ["InputError", "CorruptStateError", "TrainingError"])
def test_a_disk_that_gives_errors_says_nothing_of_what_a_file_holds(name: str) -> None:
    told = getattr(errors, name)("it cannot be read")
    told.__cause__ = OSError(errno.EIO, os.strerror(errno.EIO))
    assert exit_code_of(told) == 75


@pytest.mark.parametrize(
    "command", [["components", "--json"], ["status", "RUN"], ["show", "RUN", "--json"]]
)
@pytest.mark.parametrize("also_errors", [False, True])
def test_an_output_on_a_full_disk_is_75_without_a_traceback(
    tmp_path: Path, command: list[str], also_errors: bool
) -> None:
    run = make_run(tmp_path / "run", rounds=1)
    arguments = [str(run.path) if a == "RUN" else a for a in command]
    with open("/dev/full", "wb") as full:
        done = subprocess.run(
            [sys.executable, "-m", "orchestrator.cli", *arguments],
            cwd=ROOT,
            stdout=full,
            stderr=full if also_errors else subprocess.PIPE,
            check=False,
            timeout=120,
        )
    assert done.returncode == 75
    if not also_errors:
        told = done.stderr.decode()
        assert "Traceback" not in told
        assert "internal error" not in told
        assert os.strerror(errno.ENOSPC) in told
        assert "Fix: make room" in told


def test_a_scheduler_that_stops_a_run_gets_75_and_a_person_130() -> None:
    assert exit_code_of(InterruptedRun("x", signal.SIGTERM)) == 75
    assert exit_code_of(InterruptedRun("x", signal.SIGUSR1)) == 75
    assert exit_code_of(InterruptedRun("x", signal.SIGINT)) == 130
    assert exit_code_of(KeyboardInterrupt()) == 130


def test_a_folder_without_a_run_is_2_and_an_edited_run_is_3(tmp_path: Path) -> None:
    assert invoke("resume", tmp_path)[0] == 2
    arguments = ("run", "fake-smoke", "rounds=1", "--runs-dir", tmp_path, "--name", "a")
    assert invoke(*arguments)[0] == 0
    config = json.loads((tmp_path / "a/config.json").read_text())
    (tmp_path / "a/config.json").write_text(json.dumps(config | {"rounds": 3}))
    code, _, err = invoke("resume", tmp_path / "a")
    assert code == 3, err
    assert "edited" in err


def test_run_or_resume_goes_on_with_the_same_run_and_names_what_differs(tmp_path: Path) -> None:
    arguments = ("run", "fake-smoke", "--runs-dir", tmp_path, "--name", "a", "--or-resume")
    assert invoke(*arguments, "rounds=1")[0] == 0
    code, out, _ = invoke(*arguments, "rounds=1")
    assert code == 0
    assert "nothing to resume" in out
    code, _, err = invoke(*arguments, "rounds=1", "seed=4")
    assert code == 2
    assert "seed: 0 -> 4" in err
    assert invoke("run", "fake-smoke", "--or-resume")[0] == 2


def test_a_start_that_was_cut_off_before_the_run_began_does_not_keep_its_name(
    tmp_path: Path,
) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a/config.json").write_text("{}")
    arguments = ("run", "fake-smoke", "rounds=1", "--runs-dir", tmp_path, "--name", "a")
    assert invoke(*arguments)[0] == 0
    (tmp_path / "empty").mkdir()  # killed right after it made the folder, before its first claim
    assert invoke(*arguments[:-1], "empty")[0] == 0
    (tmp_path / "b").mkdir()
    (tmp_path / "b/thesis.tex").write_text("")
    assert invoke(*arguments[:-1], "b")[0] == 2


def test_a_second_sigterm_ends_the_run_at_once_with_75(tmp_path: Path) -> None:
    slow = ["rollout.engine.seconds_per_call=20", "rounds=1"]
    command = ["run", "fake-smoke", *slow, "--runs-dir", str(tmp_path), "--name", "slow"]
    child = subprocess.Popen(
        [sys.executable, "-m", "orchestrator.cli", *command],
        cwd=ROOT,
        stderr=subprocess.PIPE,
        text=True,
    )
    with ended_after(child):
        deadline = time.monotonic() + 60
        while not list(tmp_path.glob("slow/rounds/0000/evaluate/prompts/*.parquet")):
            assert child.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.02)
        time.sleep(
            0.5
        )  # it sleeps in the engine now, and takes notice of the first signal only afterwards
        child.send_signal(signal.SIGTERM)
        time.sleep(0.3)
        assert child.poll() is None
        asked = time.monotonic()
        child.send_signal(signal.SIGTERM)
        _, err = child.communicate(timeout=60)
    assert child.returncode == 75, err
    assert time.monotonic() - asked < 10


def test_resuming_a_finished_run_says_so_and_succeeds(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    run_experiment(fake_config(tmp_path), folder, source="")
    code, out, _ = invoke("resume", folder.path)
    assert (code, "nothing to resume" in out) == (0, True)
