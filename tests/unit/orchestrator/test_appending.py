"""Lines that are added to a file: whole, or not there; a half never stays for the next to run into."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from orchestrator.runs.events import EventKind, EventLog, read_events
from orchestrator.runs.journal import Journal
from orchestrator.runs.phases import Drawn, Phase
from orchestrator.tracking.spool import FinishLine, Spool
from policies.base.errors import StorageError
from policies.storage import files
from policies.storage.faulty_files import FailingDisk
from policies.storage.files import FileLayer
from tests.support.full_disk import largest_file
from workers.judge.reply_cache import ReplyCache
from workers.training.step_log import log_line

FIRST, SECOND = b'{"n": 1}\n', b'{"n": 2, "text": "' + b"x" * 300 + b'"}\n'


class BrokenSync(FileLayer):
    """fsync gives an error as long as `breaks`; the system then believes the data to be on disk."""

    def __init__(self, *, cuts: bool = True) -> None:
        self.breaks, self.cuts = True, cuts
        self.syncs = 0

    def sync(self, path: Path) -> None:
        self.syncs += 1
        if self.breaks:
            raise OSError(errno.EIO, os.strerror(errno.EIO), str(path))
        super().sync(path)

    def cut(self, path: Path, size: int) -> None:
        if not self.cuts:
            raise OSError(errno.EIO, os.strerror(errno.EIO), str(path))
        super().cut(path, size)


class Trickle(FileLayer):
    """A disk that takes one byte at a time."""

    def write(self, descriptor: int, data: memoryview) -> int:
        return super().write(descriptor, data[:1])


class Deaf(FileLayer):
    """A disk that takes nothing and gives no error."""

    def write(self, descriptor: int, data: memoryview) -> int:
        return 0


def test_a_disk_that_takes_a_byte_at_a_time_gets_the_whole_line(tmp_path: Path) -> None:
    with files.using(Trickle()):
        files.append_line(tmp_path / "log", FIRST)
        files.write_json(tmp_path / "a.json", [1])
        files.create_exclusively(tmp_path / "claim", SECOND)
    assert (tmp_path / "log").read_bytes() == FIRST
    assert (tmp_path / "a.json").read_text() == "[\n  1\n]\n"
    assert (tmp_path / "claim").read_bytes() == SECOND


def test_a_disk_that_takes_nothing_is_full_and_is_not_asked_for_ever(tmp_path: Path) -> None:
    with files.using(Deaf()), pytest.raises(StorageError, match="the disk is full"):
        files.append_line(tmp_path / "log", FIRST)
    with files.using(Deaf()), pytest.raises(StorageError, match="the disk is full"):
        files.create_exclusively(tmp_path / "claim", FIRST)
    assert not (tmp_path / "claim").exists(), "half a claim would be one that nobody can read"


@pytest.mark.parametrize("add", [files.append_line, files.append_unsynced])
@pytest.mark.parametrize("taken", [1, 72, len(SECOND) - 1])
def test_what_the_system_took_of_a_line_is_cut_back(
    tmp_path: Path, add: Callable[[Path, bytes], None], taken: int
) -> None:
    path = tmp_path / "log"
    add(path, FIRST)
    with largest_file(len(FIRST) + taken), pytest.raises(StorageError, match="larger") as caught:
        add(path, SECOND)
    assert caught.value.exit_code == 75
    assert path.read_bytes() == FIRST
    add(path, SECOND)
    assert path.read_bytes() == FIRST + SECOND


def test_a_half_that_could_not_be_cut_off_is_cut_off_before_anything_follows_it(
    tmp_path: Path,
) -> None:
    path = tmp_path / "log"
    files.append_line(path, FIRST)
    with files.using(FailingDisk(1, "lasting", errno.EIO)):
        for _ in range(2):
            with pytest.raises(StorageError):
                files.append_line(path, SECOND)
    torn = path.read_bytes()
    assert torn.startswith(FIRST)
    assert torn != FIRST, "the half is there: the disk let nothing be done about it"
    files.append_line(path, SECOND)
    assert path.read_bytes() == FIRST + SECOND


def test_a_new_writer_cuts_off_what_a_dead_one_left_and_a_whole_line_stays(tmp_path: Path) -> None:
    for left in (b'{"n": 2', b"\0" * 5000, b"x" * 200_000):
        path = tmp_path / str(len(left))
        path.write_bytes(FIRST + left)
        files.append_line(path, SECOND)
        assert path.read_bytes() == FIRST + SECOND
    path = tmp_path / "only half a first line"
    path.write_bytes(b'{"n"')
    assert files.cut_torn_line(path) == 0
    files.append_line(path, FIRST)
    assert path.read_bytes() == FIRST


def test_a_line_that_did_not_become_durable_is_taken_back_and_written_anew(tmp_path: Path) -> None:
    path = tmp_path / "log"
    files.append_line(path, FIRST)
    layer = BrokenSync()
    with files.using(layer):
        with pytest.raises(StorageError, match="disk reports an error"):
            files.append_line(path, SECOND)
        assert path.read_bytes() == FIRST
        assert layer.syncs == 1, "a second fsync says yes and proves nothing"
        layer.breaks = False
        files.append_line(path, SECOND)
    assert path.read_bytes() == FIRST + SECOND


def test_a_line_that_could_not_be_taken_back_does_not_count_for_its_writer(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal.jsonl")
    drawn = Drawn(num_prompts=1, num_shards=1, digest="d")
    journal.append(0, Phase.DRAW, drawn)
    layer = BrokenSync(cuts=False)
    with files.using(layer):
        for _ in range(2):
            with pytest.raises(StorageError):
                journal.append(1, Phase.DRAW, drawn)
        layer.breaks, layer.cuts = False, True
        with pytest.raises(StorageError, match="pawl resume"):
            journal.append(1, Phase.DRAW, drawn)  # what is there only a new reader finds out
    again = Journal(journal.path)
    assert [e.round for e in again.entries] in ([0], [0, 1])
    for index in range(len(again.entries), 3):
        again.append(index, Phase.DRAW, drawn)
    assert [e.round for e in Journal(journal.path).entries] == [0, 1, 2], "once each, in one chain"


def test_a_file_that_did_not_become_durable_is_gone(tmp_path: Path) -> None:
    layer = BrokenSync()
    with files.using(layer):
        with pytest.raises(StorageError):
            files.write_once(tmp_path / "draft", lambda path: files.put(path, b"d"))
        with pytest.raises(StorageError):
            files.create_exclusively(tmp_path / "claim", b"c")
        with pytest.raises(StorageError):
            files.write_json(tmp_path / "a.json", 1)
    assert os.listdir(tmp_path) == []


def test_lines_without_an_end_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no end"):
        files.append_line(tmp_path / "log", b"{}")


def test_a_file_made_anew_in_the_place_of_a_torn_one_is_not_cut(tmp_path: Path) -> None:
    path = tmp_path / "log"
    with files.using(BrokenSync(cuts=False)), pytest.raises(StorageError):
        files.append_line(path, FIRST)
    files.remove_file(path)
    path.write_bytes(SECOND)
    files.append_line(path, FIRST)
    assert path.read_bytes() == SECOND + FIRST


def a_short_write(write: Callable[[], object]) -> None:
    """Let the disk take half of the next append and no more; what is told of it does not matter here."""
    with files.using(FailingDisk(1, "half")):
        write()


def test_no_log_of_a_run_keeps_half_a_line(tmp_path: Path) -> None:
    events = EventLog(tmp_path / "events.jsonl")
    events.emit(EventKind.WARNING, message="first")
    a_short_write(lambda: events.emit(EventKind.WARNING, message="second"))
    assert [e.detail["message"] for e in read_events(events.path)] == ["first"]
    events.emit(EventKind.WARNING, message="third")
    found = [e.detail["message"] for e in read_events(events.path)]
    assert found == ["first", "second", "third"], "what did not fit goes with the next"

    steps = tmp_path / "steps.jsonl"
    log_line(steps, {"step": 1})
    with pytest.raises(StorageError):
        a_short_write(lambda: log_line(steps, {"step": 2, "loss": 0.5}))
    log_line(steps, {"step": 2})
    assert [json.loads(line)["step"] for line in steps.read_text().splitlines()] == [1, 2]

    cache = ReplyCache(tmp_path / "cache")
    cache.put("a", "first")
    a_short_write(lambda: cache.put("b", "second"))
    assert cache.get("b") == "second", "it stays in memory"
    assert len(ReplyCache(tmp_path / "cache")) == 1

    spool = Spool(tmp_path / "tracking")
    spool.append(FinishLine(at=1, status="FAILED", reason=""))
    with pytest.raises(StorageError):
        a_short_write(lambda: spool.append(FinishLine(at=2, status="FAILED", reason="")))
    assert spool.left() == 1
    spool.append(FinishLine(at=3, status="FAILED", reason=""))
    assert [getattr(line, "at", None) for line, _ in spool.read()] == [1, 2, 3]
