"""The keeper: it ends what it started when its owner dies, and touches nobody else's processes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable

import pytest

from policies.base.errors import SandboxUnavailableError
from tests.attacks.victims import ROOT
from workers.sandbox.keeper import Keeper, keeper
from workers.sandbox.sandbox import Sandbox
from workers.sandbox.settings import SandboxSettings, SandboxStatus

# Starts a shell whose child ignores all that can be ignored, in a session of its own, and outlives its parent.
STRAY = "trap '' HUP TERM INT; setsid sleep 100 & echo $!; read _"
OWNER = """
import os, sys, time
from workers.sandbox.keeper import Keeper
keeper = Keeper()
report, their_report = os.pipe()
quiet, their_quiet = os.pipe()
pids = []
for _ in range(2):
    pid = keeper.start(["/bin/sh", "-c", sys.argv[1]], {"PATH": "/usr/bin:/bin"}, [quiet, their_report, 2])
    pids += [pid, int(os.read(report, 100))]
fork = os.fork() if sys.argv[2] == "fork" else -1
if fork != 0:
    print(fork, keeper.pid, *pids, flush=True)
time.sleep(100)  # the fork holds a copy of the channel to the keeper
"""


def alive(pid: int) -> bool:
    """Whether a process runs; one that is dead and not yet reaped does not."""
    try:
        with open(f"/proc/{pid}/stat", encoding="ascii") as file:
            return file.read().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def comes_true(claim: Callable[[], bool], seconds: float = 30.0) -> bool:
    deadline = time.monotonic() + seconds
    while not claim() and time.monotonic() < deadline:
        time.sleep(0.01)
    return claim()


@pytest.mark.parametrize("also", ["", "fork"])
def test_when_the_owner_is_killed_the_keeper_ends_all_that_it_started_and_itself(also: str) -> None:
    bystander = subprocess.Popen(["/bin/sleep", "100"], start_new_session=True)
    command = [sys.executable, "-c", OWNER, STRAY, also]
    owner = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    fork = -1
    try:
        assert owner.stdout is not None
        fork, *pids = (int(word) for word in owner.stdout.readline().split())
        assert len(pids) == 5
        assert all(map(alive, pids))
        owner.kill()
        owner.wait()
        assert comes_true(lambda: not any(map(alive, pids)))
        assert bystander.poll() is None
        assert fork == -1 or alive(fork)
    finally:
        if fork > 0:
            os.kill(fork, signal.SIGKILL)
        owner.kill()
        owner.communicate()
        bystander.kill()
        bystander.wait()


def test_reaping_a_process_ends_what_it_left_behind_and_nothing_else() -> None:
    own = Keeper()
    quiet, report = os.pipe(), os.pipe()
    try:
        command = ["/bin/sh", "-c", STRAY]
        environment = {"PATH": "/usr/bin:/bin"}
        shells, strays = [], []
        for _ in range(2):
            shells.append(own.start(command, environment, [quiet[0], report[1], 2]))
            strays.append(int(os.read(report[0], 100)))
        own.kill(shells[0])
        assert comes_true(lambda: not alive(shells[0]))
        assert own.reap(shells[0])[0] == -signal.SIGKILL
        assert comes_true(lambda: not alive(strays[0]))
        assert alive(shells[1])
        assert alive(strays[1])
        with pytest.raises(SandboxUnavailableError, match="none of the keeper's"):
            own.reap(shells[0])
    finally:
        own._lose()
        os.waitpid(own.pid, 0)
        for end in (*quiet, *report):
            os.close(end)
    assert not any(map(alive, shells + strays))


def test_a_keeper_kills_no_process_that_it_did_not_start() -> None:
    bystander = subprocess.Popen(["/bin/sleep", "100"], start_new_session=True)
    try:
        keeper().kill(bystander.pid)
        with pytest.raises(subprocess.TimeoutExpired):
            bystander.wait(0.3)
    finally:
        bystander.kill()
        bystander.wait()


def test_when_the_keeper_is_killed_work_ends_as_our_fault_and_the_next_goes_on() -> None:
    with Sandbox(SandboxSettings(num_warm=1, wall_seconds=30)) as sandbox:
        session = sandbox.open_session()
        assert session.run("x = 1").status is SandboxStatus.OK
        lost = keeper()
        os.kill(lost.pid, signal.SIGKILL)
        os.waitpid(lost.pid, 0)
        assert session._process is not None
        assert comes_true(session._process._has_died)
        result = session.run("print(x)")
        session.close()
        assert result.status is SandboxStatus.START_FAILED
        assert "keeper" in result.error
        assert sandbox.run("print(1)").stdout == "1\n"
        assert keeper() is not lost
