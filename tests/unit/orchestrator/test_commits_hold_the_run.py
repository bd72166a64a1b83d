"""A commit holds the run: no takeover between its check and its change, and a replaced driver changes nothing."""

from __future__ import annotations

import errno
import fcntl
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from orchestrator.runs.claim_lock import locked
from orchestrator.runs.folder import RunFolder
from orchestrator.runs.lease import LOCK, Fence, claim
from orchestrator.runs.quarantine import Quarantine
from policies.base.errors import LeaseError
from policies.base.records import Message, Prompt
from policies.storage.artifacts import (
    discard,
    find_damage,
    marker_path,
    read_records,
    write_records,
)
from policies.storage.policy_store import PolicyStore


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    return RunFolder(tmp_path / "run")


def prompt(text: str) -> Prompt:
    return Prompt(id="7x8", messages=(Message(role="user", content=text),))


def test_a_claim_waits_until_the_commit_of_a_living_driver_is_whole(folder: RunFolder) -> None:
    old = claim(folder)
    claimed = threading.Event()

    def take_over() -> None:
        claim(folder).release()
        claimed.set()

    thread = threading.Thread(target=take_over)
    with old.fence.holding() as is_locked:
        assert is_locked
        thread.start()
        assert not claimed.wait(0.3), "it was claimed in the middle of a commit"
        old.fence()
    assert claimed.wait(30)
    thread.join(30)
    with pytest.raises(LeaseError, match="lost the run"), old.fence.holding():
        pytest.fail("a replaced driver holds nothing")
    old.release()


def test_a_process_that_is_stopped_in_a_commit_is_named_with_a_way_out(folder: RunFolder) -> None:
    held = claim(folder)
    lock = folder.epochs / LOCK
    told = f"`fuser -v {lock}` names it"
    with (
        held.fence.holding(),
        pytest.raises(LeaseError, match=told) as caught,
        locked(lock, alone=True, patience=0.05),
    ):
        pytest.fail("two have it")
    assert caught.value.exit_code == 75
    held.release()


def test_the_lock_of_a_driver_that_dies_in_a_commit_is_free(folder: RunFolder) -> None:
    folder.epochs.mkdir(parents=True)
    lock = folder.epochs / LOCK
    program = (
        "import fcntl, os, sys\n"
        "handle = os.open(sys.argv[1], os.O_RDWR | os.O_CREAT)\n"
        "fcntl.flock(handle, fcntl.LOCK_EX)\n"
        "os.kill(os.getpid(), 9)\n"
    )
    done = subprocess.run([sys.executable, "-c", program, str(lock)], timeout=60, check=False)
    assert done.returncode == -9
    with locked(lock, alone=True, patience=0.0) as is_locked:
        assert is_locked


@pytest.mark.parametrize("code", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP])
def test_a_file_system_without_locks_is_worked_on_and_says_so(
    folder: RunFolder, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    def refuse(descriptor: int, kind: int) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(fcntl, "flock", refuse)
    with claim(folder) as held, held.fence.holding() as is_locked:
        assert not is_locked


def a_shard(run: RunFolder, fence: Fence) -> None:
    write_records(run.round(1).prompts, Prompt, [prompt("by the replaced one")], guard=fence)


def a_removal(run: RunFolder, fence: Fence) -> None:
    discard(run.round(1).prompts, fence)


def a_quarantine(run: RunFolder, fence: Fence) -> None:
    Quarantine(run, guard=fence).set_aside(run.round(1).prompts, "it looked damaged")


def a_policy(run: RunFolder, fence: Fence) -> None:
    run.round(1).candidate.mkdir(parents=True)
    (run.round(1).candidate / "model.safetensors").write_bytes(b"other weights")
    PolicyStore(run.policies, guard=fence).publish(
        run.round(1).candidate, number=1, round_index=1, parent=0
    )


@pytest.mark.parametrize("change", [a_shard, a_removal, a_quarantine, a_policy])
def test_a_replaced_driver_changes_no_file_of_the_next(
    folder: RunFolder, change: Callable[[RunFolder, Fence], None]
) -> None:
    old, new = claim(folder), claim(folder)
    path = folder.round(1).prompts
    write_records(path, Prompt, [prompt("by the holder")], guard=new.fence)
    version = folder.policies / "0001"
    version.mkdir(parents=True)
    (version / "model.safetensors").write_bytes(b"weights")
    before = (path.read_bytes(), marker_path(path).read_bytes(), sorted(os.listdir(version)))
    with pytest.raises(LeaseError, match="lost the run"):
        change(folder, old.fence)
    after = (path.read_bytes(), marker_path(path).read_bytes(), sorted(os.listdir(version)))
    assert after == before
    assert not folder.quarantine.exists()
    assert find_damage(path) is None
    assert read_records(path, Prompt) == [prompt("by the holder")]
    old.release()
    new.release()
