"""The worker's end of the file transfer, against a real server: files fetched, brought, followed, kept and removed."""

from __future__ import annotations

import json
import os
import time
import tracemalloc
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from orchestrator.rounds.transfers import WRITABLE
from policies.base.errors import ArtifactError, InputError, WorkerLostError
from workers.cluster.heartbeat import report_progress, reporting
from workers.cluster.seam import Files
from workers.cluster.transfer.client import TransferClient
from workers.cluster.transfer.server import PIECE_BYTES, FileFact, FileServer
from workers.cluster.transfer.shared_folder import RunFiles

SHARD = "rounds/0001/trajectories/shard-0000.parquet"
DRAFT = "rounds/0001/attempts/e000001-0001/trajectories/shard-0000.parquet"
TRY = "rounds/0001/attempts/train-e000001-0001"
CHECKPOINTS = "rounds/0001/train/checkpoints"


@dataclass
class Strait:
    """Two folders that stand for two machines; a file has the same path on both, below its machine's folder."""

    home: Path
    asked: Counter[str] = field(default_factory=Counter)
    flip: str = ""
    """Method whose bytes arrive changed."""
    slow: str = ""
    """Method that takes half a second."""

    def __post_init__(self) -> None:
        self.near, self.far = self.home / "near", self.home / "far"
        for machine in (self.near, self.far):
            (machine / "run").mkdir(parents=True)
        root = str(self.near / "run")
        models = (str(self.near / "model"),)
        self.server = FileServer(
            RunFiles(root, "", "", shared=False, readable=models, writable=WRITABLE)
        )

    def client(self, name: str = "far-1") -> TransferClient:
        return TransferClient(self.ask, self.far / "run", name)

    def ask(self, method: str, *args: object) -> object:
        self.asked[method] += 1
        time.sleep(0.5 * (method == self.slow))
        sent = [self._over(value, self.far, self.near) for value in args]
        if method == self.flip == "put":
            sent[3] = b"?" + bytes(sent[3])[1:]
        answer = getattr(self.server, method)(*sent)
        if method == self.flip == "piece":
            answer = b"?" + answer[1:]
        return self._over(answer, self.near, self.far)

    def _over(self, value: Any, here: Path, there: Path) -> Any:
        if isinstance(value, str):
            return value.replace(str(here), str(there))
        if isinstance(value, FileFact):
            return value._replace(path=value.path.replace(str(here), str(there)))
        if isinstance(value, list):
            return [self._over(each, here, there) for each in value]
        return value

    def at_home(self, name: str, data: bytes) -> str:
        """Write a file on the driver's node; returns its path on the far one."""
        path = self.near / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        return str(self.far / name)


@pytest.fixture
def strait(tmp_path: Path) -> Strait:
    return Strait(tmp_path)


def test_a_file_comes_with_its_marker_once_and_again_only_when_it_changed(strait: Strait) -> None:
    path = strait.at_home(f"run/{SHARD}", b"rows")
    strait.at_home(f"run/{SHARD}.json", b"{}")
    client = strait.client()
    for _ in range(2):
        client.fetch([path])
    assert Path(path).read_bytes() == b"rows"
    assert Path(path + ".json").read_bytes() == b"{}"
    assert strait.asked["piece"] == 2
    strait.at_home(f"run/{SHARD}", b"ROWS")
    client.fetch([path])
    assert Path(path).read_bytes() == b"ROWS"
    assert strait.asked["piece"] == 3


def test_what_the_driver_has_no_more_is_not_left_to_be_read(strait: Strait) -> None:
    path = strait.at_home(f"run/{SHARD}", b"rows")
    client = strait.client()
    client.fetch([path])
    (strait.near / "run" / SHARD).unlink()
    client.fetch([path])
    assert not Path(path).exists()


def test_a_file_that_changes_on_its_way_never_gets_its_name(strait: Strait) -> None:
    path = strait.at_home(f"run/{SHARD}", b"rows")
    strait.flip = "piece"
    with pytest.raises(WorkerLostError, match=r"changed on its way.*Fix"):
        strait.client().fetch([path])
    assert list(Path(path).parent.iterdir()) == []
    draft = strait.far / "run" / DRAFT
    draft.parent.mkdir(parents=True)
    draft.write_bytes(b"rows")
    strait.flip = "put"
    with pytest.raises(ArtifactError, match="did not arrive"):
        strait.client().bring([str(draft)])
    assert not (strait.near / "run" / DRAFT).exists()


def test_a_copy_that_its_node_damaged_is_fetched_again(strait: Strait) -> None:
    path = strait.at_home(f"run/{SHARD}", b"rows")
    client = strait.client()
    client.fetch([path])
    assert not client.refetch_damaged([path]), "nothing is damaged yet"
    before = Path(path).stat()
    Path(path).write_bytes(b"rowX")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert client.refetch_damaged([path])
    assert Path(path).read_bytes() == b"rows"


def test_a_model_of_the_node_is_used_when_it_is_the_same_and_never_replaced(strait: Strait) -> None:
    model = str(Path(strait.at_home("model/weights", b"0123")).parent)
    own = Path(model, "weights")
    own.parent.mkdir()
    own.write_bytes(b"0123")
    client = strait.client()
    for _ in range(2):
        client.fetch([model])
    assert strait.asked["piece"] == 0
    assert strait.asked["sha256"] == 1
    own.write_bytes(b"mine")
    with pytest.raises(InputError, match=r"another file lies where.*policy\.model"):
        client.fetch([model])
    assert own.read_bytes() == b"mine"
    own.unlink()
    client.fetch([model])
    assert own.read_bytes() == b"0123"


def test_neither_way_holds_more_than_some_pieces_of_a_file_in_memory(strait: Strait) -> None:
    size = 12 * PIECE_BYTES + 5
    path = strait.at_home("run/policies/0001/a.safetensors", b"")
    weights = strait.near / "run/policies/0001/a.safetensors"
    os.truncate(weights, size)
    tracemalloc.start()
    try:
        strait.client().fetch([str(Path(path).parent)])
        draft = strait.far / "run" / TRY / "candidate" / "a.safetensors"
        draft.parent.mkdir(parents=True)
        Path(path).rename(draft)
        strait.client().bring([str(strait.far / "run" / TRY)])
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert (strait.near / "run" / TRY / "candidate" / "a.safetensors").stat().st_size == size
    assert peak < 4 * PIECE_BYTES


def test_what_no_worker_of_the_node_asks_for_any_more_is_removed(strait: Strait) -> None:
    old, new = (
        str(Path(strait.at_home(f"run/policies/000{n}/a", b"%d" % n)).parent) for n in (1, 2)
    )
    sampler, trainer = strait.client("sampler"), strait.client("trainer")
    sampler.fetch([old])
    trainer.fetch([old])
    assert strait.asked["piece"] == 1, "the second worker finds what the first fetched"
    sampler.fetch([new])
    assert Path(old, "a").exists(), "the trainer uses it"
    trainer.fetch([new])
    assert not Path(old).exists()
    sampler.close()
    assert Path(new, "a").exists()
    trainer.close()
    assert not Path(new).exists()


def test_drafts_are_brought_before_the_answer_and_after_a_failure_and_leave_the_node(
    strait: Strait,
) -> None:
    draft, log = strait.far / "run" / DRAFT, strait.far / "run" / TRY / "steps.jsonl"
    with strait.client().transferring("", Files(writes=(str(draft),))):
        draft.parent.mkdir(parents=True)
        draft.write_bytes(b"rows")

    def failing() -> None:
        with strait.client().transferring("", Files(writes=(str(log.parent),))):
            log.parent.mkdir(parents=True)
            log.write_bytes(b"1\n")
            (log.parent / ".candidate.1.tmp").mkdir()
            (log.parent / ".candidate.1.tmp/half").write_bytes(b"half")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        failing()
    assert (strait.near / "run" / DRAFT).read_bytes() == b"rows"
    assert everything_in(strait.near / "run" / TRY) == ["steps.jsonl"]
    assert not draft.exists()
    assert not log.parent.exists()


@pytest.mark.parametrize("slow", ["put", "piece"])
def test_a_worker_whose_files_are_on_their_way_is_not_silent(strait: Strait, slow: str) -> None:
    strait.slow = slow
    report, draft = strait.far / "run/activity/71-1.json", strait.far / "run" / TRY / "weights"
    policy = strait.at_home("run/policies/0001/a.safetensors", b"")
    os.truncate(strait.near / "run/policies/0001/a.safetensors", 5 * PIECE_BYTES)
    files = Files(reads=(policy,), writes=(str(draft.parent),))
    with reporting(str(report)), strait.client().transferring(str(report), files):
        draft.parent.mkdir(parents=True)
        draft.touch()
        os.truncate(draft, 5 * PIECE_BYTES)
    sign = json.loads((strait.near / "run/activity/71-1.json").read_bytes())
    assert sign["counts"]["sent_mb" if slow == "put" else "fetched_mb"] > 5


def test_signs_of_life_logs_and_whole_checkpoints_arrive_while_the_call_runs(
    strait: Strait,
) -> None:
    report = strait.far / "run/activity/71-1.json"
    log, checkpoints = strait.far / "run" / TRY / "steps.jsonl", strait.far / "run" / CHECKPOINTS
    files = Files(
        reads=(str(checkpoints),), writes=(str(log.parent),), live=(str(log), str(checkpoints))
    )
    there = strait.near / "run" / CHECKPOINTS
    strait.at_home(f"run/{CHECKPOINTS}/000001/state.json", b"1")
    (checkpoints / ".000009.7.tmp").mkdir(parents=True)  # what a trainer that died here left
    with reporting(str(report)), strait.client().transferring(str(report), files):
        assert everything_in(checkpoints) == ["000001/state.json"]
        log.parent.mkdir(parents=True)
        log.write_bytes(b"1\n")
        half = checkpoints / ".000002.1.tmp"
        half.mkdir()
        (half / "state.json").write_bytes(b"2")
        time.sleep(1.1)
        report_progress(steps=1)
        until(lambda: (strait.near / "run" / TRY / "steps.jsonl").read_bytes() == b"1\n")
        until(
            lambda: (
                json.loads((strait.near / "run/activity/71-1.json").read_bytes())["counts"]["steps"]
                == 1
            )
        )
        assert everything_in(there) == ["000001/state.json"], "an unfinished one was sent"
        half.rename(checkpoints / "000002")
        (checkpoints / "000001/state.json").unlink()
        (checkpoints / "000001").rmdir()
        with log.open("ab") as handle:
            handle.write(b"2\n")
        until(lambda: everything_in(there) == ["000002/state.json"])
        until(lambda: (strait.near / "run" / TRY / "steps.jsonl").read_bytes() == b"1\n2\n")
    assert strait.asked["grow"] == 2, "a log is sent once, not once a second"
    assert not report.exists()


def everything_in(folder: Path) -> list[str]:
    """Names of all files below a folder."""
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())


def until(holds: Any, seconds: float = 20.0) -> None:
    """Wait until something is true; a file that is not there yet is not."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            if holds():
                return
        except (
            OSError,
            ValueError,
            KeyError,
        ):  # not there yet, or half there: the deadline below decides
            pass
        assert time.monotonic() < deadline, "it never came true"
        time.sleep(0.05)
