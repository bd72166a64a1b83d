"""Every order in which several drivers can work on one folder: the real code, one file operation at a time.

A driver stops before each look at or change of a shared name until it is told to go on, so any order can be played:
that it sleeps between a check and its change is one of them, and that it dies is never letting it go on. States that
were seen before (same files, same history of each driver) are not explored again.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import greenlet  # type: ignore[import-untyped]
import pytest

from policies.storage.files import FileLayer, using

Program = Callable[[], None]
Choice = tuple[int, str]
"""Number of a driver, and what it does: `go`, or die: `crash` (in a lock, which the kernel then opens) or `tear` (when
half of a line is written).
"""


class Died(BaseException):
    """Ends a driver."""


class Driver:
    """A driver in a greenlet of its own, which comes back before each step."""

    def __init__(self, number: int, program: Program) -> None:
        self.number = number
        self.at = "start"
        self.history = hashlib.sha256()
        self.locks = 0
        self.inside = 0
        """Looks that are one step with what they look at on their way."""
        self.order = ""
        self._program = program
        self._greenlet = greenlet.greenlet(self._work)
        self._greenlet.driver = self

    def _work(self) -> None:
        with using(SteppingFiles()), contextlib.suppress(Died):
            self._program()
        self.at = "over"

    @property
    def is_over(self) -> bool:
        return self.at == "over"

    def stop_before(self, label: str) -> None:
        """Called by the driver: wait until it is told to go on."""
        self.at = label
        self._greenlet.parent.switch()
        if label != "wait":
            self.history.update(label.encode())
        if self.order == "crash":
            raise Died

    def saw(self, value: object) -> None:
        """Called by the driver: what it does next depends on this."""
        self.history.update(repr(value).encode())

    def step(self, order: str) -> None:
        """Called by the explorer: let it go on to its next stop."""
        self.order = order
        self._greenlet.switch()

    def end(self) -> None:
        """End it, wherever it is."""
        while not self.is_over:
            self.step("crash")


def me() -> Driver | None:
    """The driver that runs now."""
    found: Driver | None = getattr(greenlet.getcurrent(), "driver", None)
    return found


def stop_before(label: str) -> None:
    """A step of the driver, if this is one."""
    driver = me()
    if driver is not None:
        driver.stop_before(label)


class SteppingFiles(FileLayer):
    """Plain files that stop before each change of a shared name; what is only durable, or has a name of its own, is
    no step.
    """

    def append(self, path: Path, data: bytes) -> None:
        stop_before(f"append {path.name}")
        driver = me()
        if driver is not None and driver.order == "tear":
            super().append(path, data[: len(data) // 2])
            raise Died
        super().append(path, data)

    def cut(self, path: Path, size: int) -> None:
        stop_before(f"cut {path.name}")
        super().cut(path, size)

    def create(self, path: Path, data: bytes) -> None:
        stop_before(f"create {path.name}")
        try:
            super().create(path, data)
        except FileExistsError:
            _saw("taken")
            raise

    def rename(self, source: Path, target: Path) -> None:
        if target.suffix == ".head":
            stop_before(f"rename {target.name}")
        super().rename(source, target)

    def sync(self, path: Path) -> None:
        """No step: nobody loses power here."""

    def sync_directory(self, path: Path) -> None:
        """No step."""


def _saw(value: object) -> None:
    driver = me()
    if driver is not None:
        driver.saw(value)


def looking(
    function: Callable[..., Any], label: str, kept: Callable[[Any], object] = lambda found: found
) -> Callable[..., Any]:
    """`function` as a step; the driver's history keeps what is used of its answer."""

    def look(*args: Any, **kwargs: Any) -> Any:
        driver = me()
        if driver is None or driver.inside:
            return function(*args, **kwargs)
        stop_before(label)
        driver.inside += 1
        try:
            found = function(*args, **kwargs)
        except OSError as error:
            _saw(type(error).__name__)
            raise
        finally:
            driver.inside -= 1
        _saw(kept(found))
        return found

    return look


class World:
    """A fresh folder with drivers at their beginning."""

    def __init__(self, folder: Path, programs: Sequence[Program]) -> None:
        self.folder = folder
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        self.drivers = [Driver(number, program) for number, program in enumerate(programs)]
        for driver in self.drivers:
            driver.step("go")  # to its first stop: nothing is touched before

    def choices(self) -> list[Choice]:
        """What can happen next."""
        found: list[Choice] = []
        for driver in self.drivers:
            if driver.is_over:
                continue
            if driver.at != "wait" or not any(d.locks for d in self.drivers):
                found.append((driver.number, "go"))
            if driver.locks and driver.at != "wait":
                found.append((driver.number, "crash"))
            if driver.at.startswith("append"):
                found.append((driver.number, "tear"))
        return found

    def do(self, choice: Choice) -> None:
        """Let one driver make one step."""
        self.drivers[choice[0]].step(choice[1])

    def key(self) -> bytes:
        """Everything that the future depends on."""
        state = hashlib.sha256()
        for path in sorted(self.folder.rglob("*")):
            if path.is_file() and path.suffix != ".tmp":
                state.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
        for driver in self.drivers:
            state.update(f"{driver.at} {driver.locks} ".encode() + driver.history.digest())
        return state.digest()

    def close(self) -> None:
        """End all drivers."""
        for driver in self.drivers:
            driver.end()


def explore(
    folder: Path,
    programs: Callable[[], Sequence[Program]],
    check: Callable[[World], None],
) -> int:
    """Play every order of the drivers' steps and check each state that can come about; returns how many there are."""
    seen: set[bytes] = set()
    waiting: list[list[Choice]] = [[]]
    while waiting:
        order = waiting.pop()
        world = World(folder, programs())
        try:
            for choice in order:
                world.do(choice)
            while (key := world.key()) not in seen:
                seen.add(key)
                try:
                    check(world)
                except BaseException as error:
                    error.add_note(f"after {order}")
                    raise
                following = world.choices()
                if not following:
                    break
                waiting += [[*order, other] for other in following[1:]]
                order = [*order, following[0]]
                world.do(following[0])
        finally:
            world.close()
    return len(seen)


@contextmanager
def counted_locks(patch: pytest.MonkeyPatch, *, there_are: bool) -> Iterator[None]:
    """Let each driver know how many locks it holds; or let the file system have none."""
    import fcntl

    take = fcntl.flock

    def flock(descriptor: int, kind: int) -> None:
        if not there_are:
            raise OSError(95, os.strerror(95))
        driver = me()
        take(descriptor, kind)
        if driver is not None:
            driver.locks += -1 if kind == fcntl.LOCK_UN else 1

    with patch.context() as patched:
        patched.setattr(fcntl, "flock", flock)
        yield
