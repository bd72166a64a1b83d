"""Drivers whose processes cannot be seen from here: containers of one name, hosts of one name, numbers used again."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from orchestrator.runs.folder import RunFolder
from orchestrator.runs.journal_reading import read_journal
from orchestrator.runs.lease import Claim, claim, is_alive, latest_claim
from policies.base.errors import LeaseError
from policies.base.machine_identity import boot_id, pid_namespace, seconds_since_boot
from policies.base.process_identity import process_start
from policies.storage.files import write_json

ROOT = Path(__file__).parents[3]
DRIVER = ROOT / "tests" / "support" / "claiming_driver.py"
BEAT = 1.0


def in_a_namespace() -> list[str]:
    """How a command is started in a pid namespace of its own, with the name of this host."""
    plain = ["unshare", "--pid", "--fork", "--kill-child", "--mount-proc"]
    for start in (plain, ["unshare", "--user", "--map-root-user", *plain[1:]]):
        done = subprocess.run([*start, "true"], capture_output=True, timeout=30, check=False)
        if done.returncode == 0:
            return start
    found = shutil.which("bwrap")
    assert found is not None, "neither unshare nor bwrap makes a pid namespace here"
    return [found, "--dev-bind", "/", "/", "--unshare-pid", "--proc", "/proc", "--die-with-parent"]


class Container:
    """A driver in a pid namespace of its own."""

    def __init__(self, run: Path, *before: str) -> None:
        command = [*before, sys.executable, str(DRIVER), str(run), str(BEAT)]
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
        )
        self.answer = self.heard()

    def heard(self) -> str:
        """The next line that it says."""
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def add_a_line(self) -> str:
        """Let it finish a phase; returns what it says."""
        assert self.process.stdin is not None
        self.process.stdin.write("go\n")
        self.process.stdin.flush()
        return self.heard()

    def driver(self) -> int:
        """The number of its driver as this process sees it."""
        pids = [self.process.pid]
        for pid in pids:
            children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
            pids += [int(child) for child in children]
        return pids[-1]

    def end(self) -> None:
        """Kill it and close its pipes."""
        for pid in {self.driver(), self.process.pid} if self.process.poll() is None else ():
            os.kill(pid, signal.SIGKILL)
        self.process.communicate(timeout=60)


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Container]]:
    """Starts drivers of one run; all are ended."""
    made: list[Container] = []

    def begin(*before: str) -> Container:
        made.append(Container(tmp_path / "run", *before))
        return made[-1]

    yield begin
    for container in made:
        container.end()


def test_a_driver_in_another_container_is_left_alone_while_it_beats_and_replaced_when_it_stands_still(
    tmp_path: Path, start: Callable[..., Container]
) -> None:
    folder, apart = RunFolder(tmp_path / "run"), in_a_namespace()
    first = start(*apart)
    assert re.match(r"claimed 1 \d+", first.answer)
    seen = latest_claim(folder)
    assert seen is not None
    assert (seen.host, seen.boot_id) == (socket.gethostname(), boot_id())
    assert seen.pid_namespace not in ("", pid_namespace())
    assert is_alive(folder)
    for second in (start(), start(*apart)):  # from outside, and from a container of the same name
        assert second.answer.startswith("refused"), second.answer
        assert f"process {seen.pid} on {seen.host} (epoch 1, in another container" in second.answer
        assert second.process.wait(60) == 75
    assert first.add_a_line() == "added"
    os.kill(first.driver(), signal.SIGSTOP)
    third = start(*apart)
    assert third.answer.startswith("claimed 2 "), "no heartbeat: it is taken for dead"
    assert third.add_a_line() == "added"
    os.kill(first.driver(), signal.SIGCONT)
    assert first.add_a_line().startswith("refused this process lost the run"), "it wakes and stops"
    reading = read_journal(folder.journal)
    assert [entry.round for entry in reading.entries] == [0, 1]
    assert (reading.notes, reading.damage) == ((), ())


def claimed(folder: RunFolder, **changes: object) -> Claim:
    """A claim of a driver like this process, with something else about it."""
    me = {"pid": os.getpid(), "pid_started": process_start(os.getpid()), "heartbeat": time.time()}
    here = {"boot_id": boot_id(), "pid_namespace": pid_namespace(), "epoch": 4, "beats": 10}
    found = Claim.model_validate({"host": socket.gethostname(), **me, **here, **changes})
    write_json(folder.driver, found.model_dump(mode="json"))
    return found


@pytest.mark.parametrize(
    "elsewhere",
    [
        {"boot_id": "of-another-kernel"},  # two hosts of one name, or a start before
        {"pid_namespace": "pid:[1]"},  # two containers of one name, or of one host network
        {"boot_id": "", "pid_namespace": ""},  # not told there, or an older Pawl
    ],
)
@pytest.mark.parametrize("mine", [True, False])
def test_a_process_number_from_elsewhere_tells_nothing(
    tmp_path: Path, elsewhere: dict[str, object], mine: bool
) -> None:
    pid = os.getpid() if mine else 2**22 + 1
    folder = RunFolder(tmp_path / "run")
    claimed(folder, **elsewhere, pid=pid)
    told: list[str] = []
    began = time.monotonic()
    claim(folder, beat_seconds=0.05, on_takeover=told.append).release()
    assert time.monotonic() - began >= 3 * 0.05, "its heartbeat is watched, whatever lives here"
    assert len(told) == 1


def test_another_container_with_this_number_is_not_this_process(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    before = claimed(folder, pid_namespace="pid:[1]")
    write_json(folder.driver, before.model_dump(mode="json") | {"beats": 11})
    beating = iter(range(12, 10**6))

    def beat(seconds: float) -> None:
        value = before.model_dump(mode="json") | {"beats": next(beating)}
        write_json(folder.driver, value)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("orchestrator.runs.lease.time.sleep", beat)
        with pytest.raises(LeaseError, match="is driven by process"):
            claim(folder, beat_seconds=5)


def test_a_number_used_again_and_a_host_renamed_are_told_from_the_driver(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    claimed(folder, pid=os.getppid(), pid_started=1)
    assert not is_alive(folder), "another process has its number"
    parent = os.getppid()
    claimed(folder, host="name-of-before", pid=parent, pid_started=process_start(parent))
    with pytest.raises(LeaseError, match="name-of-before"):
        claim(folder, beat_seconds=60)


@pytest.mark.parametrize("hours", [-5, 5])
def test_a_clock_that_jumps_changes_nothing_within_one_boot(tmp_path: Path, hours: int) -> None:
    folder = RunFolder(tmp_path / "run")
    now, apart = time.time() + 3600 * hours, "pid:[1]"
    claimed(folder, pid_namespace=apart, heartbeat=now, heartbeat_boot=seconds_since_boot())
    assert is_alive(folder)
    long_ago = seconds_since_boot() - 60
    claimed(folder, pid_namespace=apart, heartbeat=now, heartbeat_boot=long_ago)
    assert not is_alive(folder)


def test_a_replaced_driver_writes_no_heartbeat_over_that_of_the_next(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    old = claim(folder, beat_seconds=3600)
    new = claim(folder, beat_seconds=3600)
    write_json(new.fence.head_path, {})  # its journal is open
    new.release()
    stale = old.claim.model_dump(mode="json")
    write_json(folder.driver, stale)  # it asked before, and wakes now
    found = latest_claim(folder)
    assert found is not None
    assert (found.epoch, found.released) == (2, True), "the run is still free"
    old.release()


UNREADABLE = """
import sys
from pathlib import Path
from orchestrator.runs.lease import latest_claim
from orchestrator.runs.folder import RunFolder
from policies.base.errors import StorageError
from policies.storage.faulty_files import FailingReads
folder = RunFolder(Path(sys.argv[1]))
assert latest_claim(folder) is not None
FailingReads(folder.path, 1, lasting=True)  # for the rest of this process
try:
    print("took it for", latest_claim(folder))
except (StorageError, OSError):
    print("cannot tell")
"""


def test_a_claim_that_cannot_be_read_now_is_not_taken_for_none(tmp_path: Path) -> None:
    claimed(RunFolder(tmp_path / "run"))
    done = subprocess.run(
        [sys.executable, "-c", UNREADABLE, str(tmp_path / "run")],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        cwd=Path(__file__).parents[3],
    )
    assert done.stdout == "cannot tell\n", done.stderr
