"""Two and three drivers on one run in every order of claims, looks, checks, appends and deaths: one journal, whole.

Each driver takes every other one for dead, which is the worst that a judgement of who is alive can do, and writes other
results than the others would. Played on a file system with locks, and on one that has none.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from orchestrator.runs import claim_lock, journal, journal_reading, lease
from orchestrator.runs.folder import RunFolder
from orchestrator.runs.journal import Journal, JournalEntry
from orchestrator.runs.journal_reading import Reading, read_journal, reading_of
from orchestrator.runs.lease import Claim, Fence, Lease, claim
from orchestrator.runs.phases import Phase
from policies.base.errors import CorruptStateError, LeaseError, StorageError
from policies.base.records import RoundResult, RoundStatus
from policies.storage import files
from tests.support.interleavings import Program, World, counted_locks, explore, looking, stop_before


def result(index: int, by: str) -> RoundResult:
    return RoundResult(
        round=index, status=RoundStatus.KEPT, before=0, after=index, reference="none", reason=by
    )


class Silent(Lease):
    """A lease without a heartbeat, which nobody listens to here."""

    def __init__(self, folder: RunFolder, claim: Claim, beat_seconds: float) -> None:
        self.claim, self.fence = claim, Fence(folder.epochs, claim.epoch)


class Story:
    """What happened to the drivers of one order."""

    def __init__(self) -> None:
        self.told: list[JournalEntry] = []
        """Lines that a driver was told are there: it went on to build on them."""
        self.finished: list[str] = []
        self.view: tuple[JournalEntry, ...] = ()


class Drivers:
    """Programs of drivers that each bring the run to its end."""

    def __init__(self, folder: Path, names: str, rounds: int) -> None:
        self.folder, self.names, self.rounds = RunFolder(folder), names, rounds
        self.story = Story()

    def __call__(self) -> list[Program]:
        """Fresh drivers for a fresh folder."""
        self.story = Story()
        return [self._program(name) for name in self.names]

    def _program(self, name: str) -> Program:
        def drive() -> None:
            try:
                self.finish(name)
            except (LeaseError, StorageError):
                return  # exit 75

        return drive

    def finish(self, name: str) -> None:
        """Take the run and decide what is not decided."""
        held = claim(self.folder)
        book = Journal(self.folder.journal, guard=held.fence)
        for index in range(book.next_round(), self.rounds):
            book.append(index, Phase.ACCEPT, result(index, name))
            self.story.told.append(book.entries[-1])
        self.story.finished.append(name)


@pytest.fixture
def stepping(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """All looks at shared files are steps; nobody is believed to live; there are no clocks."""
    monkeypatch.setattr(lease, "_last_epoch", looking(lease._last_epoch, "epoch"))
    monkeypatch.setattr(journal, "_tail", looking(journal._tail, "end", lambda tail: tail[:1]))
    alone = looking(Journal._check_stands_alone, "line")
    monkeypatch.setattr(Journal, "_check_stands_alone", alone)
    read = Path.read_bytes
    look = looking(read, "read")
    monkeypatch.setattr(  # a claim never changes: when it is read makes no difference
        Path, "read_bytes", lambda path: read(path) if path.suffix == ".json" else look(path)
    )
    monkeypatch.setattr(claim_lock, "wait", lambda seconds: stop_before("wait"))
    monkeypatch.setattr(lease, "_check_dead", lambda *args: None)
    monkeypatch.setattr(lease, "Lease", Silent)
    monkeypatch.setattr(
        lease, "is_visible", lambda found: True
    )  # not asked of the kernel each time
    monkeypatch.setattr(lease, "_clocks", lambda: {"heartbeat": 1.0, "heartbeat_boot": 1.0})
    return monkeypatch


def checking(drivers: Drivers, *, always_grows: bool) -> Callable[[World], None]:
    """What holds in every state, so also when everybody dies in it."""

    def check(world: World) -> None:
        story = drivers.story
        reading = read_journal(drivers.folder.journal)
        assert [e.round for e in reading.entries] == list(range(len(reading.entries)))
        assert not reading.damage
        for entry in story.told:
            assert reading.entries[entry.round] == entry, "a line that was built on does not count"
        if always_grows:
            assert reading.entries[: len(story.view)] == story.view, "what counted counts no more"
            story.view = reading.entries
        if world.choices():
            return
        assert not story.finished or len(reading.entries) == drivers.rounds
        drivers.finish("later")
        last = read_journal(drivers.folder.journal)
        assert [e.round for e in last.entries] == list(range(drivers.rounds))
        assert last.entries[: len(reading.entries)] == reading.entries

    return check


def play(
    tmp_path: Path,
    patch: pytest.MonkeyPatch,
    names: str,
    rounds: int,
    *,
    locks: bool,
    fine: bool = False,
) -> int:
    """Play every order; `fine` also where a driver stops between looks that are one step else."""
    if fine:
        patch.setattr(os, "listdir", looking(os.listdir, "list", sorted))
        patch.setattr(journal, "_size", looking(journal._size, "size"))
    else:
        patch.setattr(journal_reading, "read_heads", looking(journal_reading.read_heads, "heads"))
    drivers = Drivers(tmp_path / "run", names, rounds)
    with counted_locks(patch, there_are=locks):
        return explore(drivers.folder.path, drivers, checking(drivers, always_grows=locks))


@pytest.mark.parametrize("locks", [True, False])
def test_two_drivers_leave_one_whole_journal_in_every_order(
    tmp_path: Path, stepping: pytest.MonkeyPatch, locks: bool
) -> None:
    assert play(tmp_path, stepping, "ab", 1, locks=locks) > 500


@pytest.mark.slow
@pytest.mark.timeout(7200)
@pytest.mark.parametrize(("names", "rounds", "fine"), [("ab", 2, True), ("abc", 1, False)])
@pytest.mark.parametrize("locks", [True, False])
def test_more_drivers_rounds_and_stops_leave_one_whole_journal_in_every_order(
    tmp_path: Path,
    stepping: pytest.MonkeyPatch,
    names: str,
    rounds: int,
    fine: bool,
    locks: bool,
) -> None:
    assert play(tmp_path, stepping, names, rounds, locks=locks, fine=fine) > 2000


class Checking(Journal):
    """What a driver did before there were heads: ask, append, and take every line of the file for true."""

    def _take_over(self, fence: Fence) -> Reading:
        return reading_of(self.path.read_bytes() if self.path.exists() else b"", {}, self.path)

    def _append_held(self, fence: Fence, entry: JournalEntry, line: bytes) -> None:
        fence()
        files.append_line(self.path, line)


def test_asking_before_an_append_is_not_enough(
    tmp_path: Path, stepping: pytest.MonkeyPatch
) -> None:
    stepping.setattr("tests.unit.orchestrator.test_two_drivers.Journal", Checking)
    with pytest.raises((AssertionError, CorruptStateError)) as caught:
        play(tmp_path, stepping, "ab", 1, locks=True)
    assert "after [" in caught.value.__notes__[0], "the order that shows it is told"


@pytest.mark.parametrize("num_rounds", [1, 3])
def test_lines_of_a_replaced_driver_do_not_count_wherever_they_stand(
    tmp_path: Path, num_rounds: int
) -> None:
    folder = RunFolder(tmp_path / "run")
    old = Journal(folder.journal, guard=claim(folder).fence)
    old.append(0, Phase.ACCEPT, result(0, "old"))
    first = folder.journal.read_bytes()
    for index in range(1, num_rounds + 1):  # what it would write when it wakes
        old.append(index, Phase.ACCEPT, result(index, "old"))
    late = folder.journal.read_bytes().removeprefix(first)
    old._fence.head_path.unlink()  # type: ignore[union-attr]
    folder.journal.write_bytes(first)
    new = Journal(folder.journal, guard=claim(folder).fence)
    for index in range(1, 3):
        new.append(index, Phase.ACCEPT, result(index, "new"))
    lines = folder.journal.read_bytes().splitlines(keepends=True)
    for place in range(1, len(lines) + 1):
        folder.journal.write_bytes(b"".join([*lines[:place], late, *lines[place:]]))
        reading = read_journal(folder.journal)
        assert [(e.round, e.result["reason"]) for e in reading.entries] == [
            (0, "old"),
            (1, "new"),
            (2, "new"),
        ]
        assert len(reading.notes) == num_rounds
        assert reading.damage == ()
        before = folder.journal.read_bytes()
        again = Journal(folder.journal, guard=claim(folder).fence)
        again.append(3, Phase.ACCEPT, result(3, "again"))
        assert [e.round for e in read_journal(folder.journal).entries] == [0, 1, 2, 3]
        if place < len(lines):
            assert folder.journal.read_bytes().startswith(before), "nothing is cut that counts"
        for path in folder.epochs.glob("00000[3-9].*"):
            path.unlink()
