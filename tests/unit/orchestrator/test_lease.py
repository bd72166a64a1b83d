"""Leases: one driver at a time, the dead are replaced, the replaced commit nothing more."""

from __future__ import annotations

import json
import multiprocessing
import os
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from orchestrator.runs.folder import RunFolder
from orchestrator.runs.journal import Journal
from orchestrator.runs.lease import Claim, Fence, claim, is_alive, latest_claim
from orchestrator.runs.phases import Drawn, Phase
from policies.base.errors import LeaseError
from policies.base.machine_identity import boot_id, pid_namespace
from policies.base.process_identity import process_start
from policies.storage.files import write_json
from policies.storage.policy_store import PolicyStore


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    return RunFolder(tmp_path / "run")


HERE = {"host": socket.gethostname(), "boot_id": boot_id(), "pid_namespace": pid_namespace()}
"""What a claim says that was made on this machine, outside any container."""


def elsewhere(folder: RunFolder, **changes: object) -> Claim:
    """A claim by a driver on another host, as it lies on the shared disk."""
    values = {"epoch": 4, "host": "node7", "pid": 1, "beats": 10, "heartbeat": time.time()}
    values |= {"boot_id": "of-node7", "pid_namespace": "pid:[7]"}
    found = Claim.model_validate(values | changes)
    write_json(folder.driver, found.model_dump(mode="json"))
    return found


def test_each_claim_has_the_next_epoch(folder: RunFolder) -> None:
    for epoch in (1, 2, 3):
        with claim(folder) as lease:
            assert lease.claim.epoch == epoch
            lease.fence()
    assert sorted(p.name for p in folder.epochs.glob("*.json")) == [
        f"{e:06d}.json" for e in (1, 2, 3)
    ]
    assert json.loads(folder.driver.read_text())["epoch"] == 3


def test_the_heartbeat_goes_on_until_the_lease_is_released(folder: RunFolder) -> None:
    with claim(folder, beat_seconds=0.02) as lease:
        deadline = time.monotonic() + 20
        while lease.claim.beats < 3 and time.monotonic() < deadline:
            time.sleep(0.02)
        assert lease.claim.beats >= 3
    beats = json.loads(folder.driver.read_text())["beats"]
    time.sleep(0.1)
    assert json.loads(folder.driver.read_text())["beats"] == beats


def test_a_live_driver_on_this_machine_is_left_alone(folder: RunFolder) -> None:
    parent = os.getppid()
    elsewhere(folder, **HERE, pid=parent, pid_started=process_start(parent))
    with pytest.raises(LeaseError, match=f"driven by process {parent} on ") as caught:
        claim(folder)
    assert caught.value.exit_code == 75
    assert is_alive(folder)


def test_a_dead_driver_on_this_machine_is_replaced_at_once(folder: RunFolder) -> None:
    child = subprocess.Popen([sys.executable, "-c", "pass"])
    child.wait()
    elsewhere(folder, **HERE, pid=child.pid, pid_started=1)
    assert not is_alive(folder)
    told: list[str] = []
    started = time.monotonic()
    claim(folder, on_takeover=told.append, beat_seconds=60).release()
    assert time.monotonic() - started < 30, "it does not wait for heartbeats"
    assert f"process {child.pid}" in told[0]


def test_another_process_of_the_same_number_is_not_the_old_driver(folder: RunFolder) -> None:
    parent = os.getppid()
    elsewhere(folder, **HERE, pid=parent, pid_started=1)
    assert not is_alive(folder)
    claim(folder).release()
    latest = latest_claim(folder)
    assert latest is not None
    assert latest.pid == os.getpid()


def test_a_driver_elsewhere_that_stands_still_is_replaced_after_three_beats(
    folder: RunFolder,
) -> None:
    elsewhere(folder)
    told: list[str] = []
    started = time.monotonic()
    lease = claim(folder, on_takeover=told.append, beat_seconds=0.1)
    lease.release()
    assert time.monotonic() - started >= 0.3
    assert lease.claim.epoch == 1, "epochs of claims before there were any do not matter"
    assert told == [
        "took the run over from process 1 on node7 (epoch 4, another machine), which is gone"
    ]


def test_a_driver_elsewhere_that_beats_is_left_alone_whatever_its_clock(folder: RunFolder) -> None:
    before = elsewhere(folder, heartbeat=1.0)

    def beat() -> None:
        time.sleep(0.1)
        elsewhere(folder, beats=before.beats + 1, heartbeat=2.0)

    thread = threading.Thread(target=beat)
    thread.start()
    with pytest.raises(LeaseError, match="process 1 on node7"):
        claim(folder, beat_seconds=5)
    thread.join(timeout=10)


def test_a_driver_elsewhere_is_believed_to_live_while_its_heartbeat_is_fresh(
    folder: RunFolder,
) -> None:
    found = elsewhere(folder)
    assert is_alive(folder)
    assert not is_alive(folder, now=found.heartbeat + 16)


@pytest.mark.parametrize("where", [HERE, {"host": "node7"}])
def test_a_run_that_was_released_is_free_although_its_process_lives(
    folder: RunFolder, where: dict[str, object]
) -> None:
    parent = os.getppid()
    started = process_start(parent)
    elsewhere(folder, **where, pid=parent, pid_started=started, released=True)
    assert not is_alive(folder)
    told: list[str] = []
    claim(folder, on_takeover=told.append, beat_seconds=60).release()
    assert told == []
    assert json.loads(folder.driver.read_text())["released"] is True


def test_a_claim_cut_off_in_the_middle_counts_as_dead(folder: RunFolder) -> None:
    folder.epochs.mkdir(parents=True)
    (folder.epochs / "000007.json").write_text('{"epoch": 7, "ho')
    assert not is_alive(folder)
    lease = claim(folder)
    lease.release()
    assert lease.claim.epoch == 8


def test_a_driver_that_was_replaced_commits_nothing_more(folder: RunFolder, tmp_path: Path) -> None:
    with claim(folder) as old:
        journal = Journal(folder.journal, guard=old.fence)
        journal.append(0, Phase.DRAW, Drawn(num_prompts=1, num_shards=1, digest="d"))
        before = folder.journal.read_bytes()
        claim(folder).release()
        with pytest.raises(LeaseError, match="lost the run to process"):
            journal.append(1, Phase.DRAW, Drawn(num_prompts=1, num_shards=1, digest="d"))
        assert folder.journal.read_bytes() == before
        candidate = tmp_path / "candidate"
        candidate.mkdir()
        (candidate / "model.safetensors").write_bytes(b"w")
        with pytest.raises(LeaseError):
            PolicyStore(folder.policies, guard=old.fence).publish(
                candidate, number=1, round_index=1, parent=0
            )
        assert not (folder.policies / "0001").exists()


def test_a_replaced_driver_does_not_write_its_heartbeat_over_the_new_one(
    folder: RunFolder,
) -> None:
    with claim(folder, beat_seconds=0.02) as old:
        new = claim(folder, beat_seconds=60)
        time.sleep(0.2)
        assert json.loads(folder.driver.read_text())["epoch"] == new.claim.epoch
        assert old.claim.epoch < new.claim.epoch
        new.release()


def _try_to_claim(path: str, start: float) -> int:
    folder = RunFolder(Path(path))
    time.sleep(max(0.0, start - time.time()))
    try:
        lease = claim(folder, beat_seconds=60)
    except LeaseError:
        return 0
    time.sleep(2)
    try:
        lease.fence()
    except LeaseError:
        return 0
    return lease.claim.epoch


def test_of_drivers_that_start_together_one_holds_the_run(folder: RunFolder) -> None:
    context = multiprocessing.get_context("spawn")
    with context.Pool(3) as pool:
        start = time.time() + 3
        jobs = [pool.apply_async(_try_to_claim, (str(folder.path), start)) for _ in range(3)]
        epochs = [job.get(timeout=100) for job in jobs]
    assert sum(1 for epoch in epochs if epoch) == 1, epochs


def test_a_fence_travels_to_workers() -> None:
    import pickle

    fence = Fence(Path("epochs"), 3)
    assert pickle.loads(pickle.dumps(fence)) == fence
