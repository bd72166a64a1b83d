"""The supervisor: a small process that starts the driver and starts it again where that is worth it.

It imports nothing of a run and holds no state but the folder's name, so that what kills a driver (memory, a
crash in native code, a cluster that goes away) leaves it standing. The driver dies with it.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from policies.base.errors import FAILED, INTERRUPTED, TEMPORARY

LONGEST_WAIT_SECONDS = 300.0
"""Waits between restarts double up to this."""
NOTE = "PAWL_SUPERVISOR"
"""Environment variable of the driver: the supervisor's pid, and the descriptor for the run folder's path."""

_PR_SET_PDEATHSIG = 1
_PASSED_ON = {
    signal.SIGINT: signal.SIGINT,
    signal.SIGTERM: signal.SIGTERM,
    signal.SIGUSR1: signal.SIGUSR1,
    signal.SIGHUP: signal.SIGTERM,  # the terminal is gone: stop cleanly
}
_LOOK_SECONDS = 0.2


@dataclass
class _Driver:
    """One driver process, from its start to its end."""

    process: subprocess.Popen[bytes]
    note: int
    """Descriptor from which the run folder's path can be read."""

    def folder(self) -> Path | None:
        """The folder that the driver works in, once it has said so."""
        with contextlib.suppress(BlockingIOError):
            said = os.read(self.note, 65536)
            return Path(json.loads(said)) if said else None
        return None


class Supervisor:
    """Runs `command` with `start`, and again with `resume FOLDER`, until it is done or not worth another try."""

    def __init__(
        self,
        command: Sequence[str],
        start: Sequence[str],
        *,
        max_restarts: int,
        wait_seconds: float,
        tell: Callable[[str], None],
    ) -> None:
        """Prepare; nothing is started.

        Args:
            command: the program and what stands before every subcommand.
            start: the subcommand of the first driver, with its arguments.
            max_restarts: restarts in a row without a phase that finished between them.
            wait_seconds: wait before the first of these; it doubles up to `LONGEST_WAIT_SECONDS`.
            tell: prints a line for the operator.
        """
        self._command = list(command)
        self._start = list(start)
        self._max_restarts = max_restarts
        self._wait_seconds = wait_seconds
        self._tell = tell
        self._folder: Path | None = None
        self._signal: signal.Signals | None = None
        """What we were asked to stop with."""
        self._process: subprocess.Popen[bytes] | None = None

    def run(self) -> int:
        """Drive to an end; returns the exit code of the last driver, 1 when a signal killed it too often."""
        failures, finished = 0, -1
        with self._listening():
            while True:
                code = self._drive()
                if self._asked_to_stop() or not _worth_a_restart(code):
                    return code if code >= 0 else 128 - code
                now = self._finished()
                failures = 1 if now > finished else failures + 1
                finished = now
                ended = _ending(code)
                if failures > self._max_restarts:
                    self._tell(
                        f"the driver {ended}; {self._max_restarts} restarts in a row finished no phase "
                        "(--max-restarts). Fix: `pawl doctor` explains; then `pawl resume`"
                        + ("" if self._folder is None else f" {self._folder}")
                    )
                    return code if code >= 0 else FAILED
                wait = min(self._wait_seconds * 2 ** (failures - 1), LONGEST_WAIT_SECONDS)
                self._tell(
                    f"the driver {ended}; restart {failures} of {self._max_restarts} in {wait:g} s"
                )
                self._sleep(wait)
                if self._asked_to_stop():
                    return INTERRUPTED if self._signal is signal.SIGINT else TEMPORARY

    def _drive(self) -> int:
        """Start a driver and wait for its end."""
        driver = _start([*self._command, *self._arguments()])
        self._process = driver.process
        if self._signal is not None:  # it came while there was no driver to tell
            driver.process.send_signal(_PASSED_ON[self._signal])
        try:
            while driver.process.poll() is None:
                time.sleep(_LOOK_SECONDS)
                if self._folder is None:
                    self._folder = driver.folder()
        finally:
            self._process = None
            if self._folder is None:
                self._folder = driver.folder()
            os.close(driver.note)
        return driver.process.returncode

    def _arguments(self) -> list[str]:
        if self._folder is not None and (self._folder / "run.json").is_file():
            return ["resume", str(self._folder)]
        return self._start

    def _finished(self) -> int:
        """Bytes of the journal: they grow with each finished phase, and with nothing else."""
        try:
            return 0 if self._folder is None else (self._folder / "journal.jsonl").stat().st_size
        except OSError:  # no phase has finished yet
            return 0

    def _sleep(self, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while not self._asked_to_stop() and time.monotonic() < deadline:
            time.sleep(min(_LOOK_SECONDS, max(0.0, deadline - time.monotonic())))

    def _pass_on(self, number: int, frame: FrameType | None) -> None:
        self._signal = signal.Signals(number)
        if self._process is not None:
            self._process.send_signal(_PASSED_ON[self._signal])

    def _asked_to_stop(self) -> bool:
        return self._signal is not None

    @contextlib.contextmanager
    def _listening(self) -> Iterator[None]:
        before = {number: signal.signal(number, self._pass_on) for number in _PASSED_ON}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def own_command() -> list[str]:
    """Tell how this program is called again: the same interpreter and the same installed packages."""
    return [sys.executable, "-P", "-m", "orchestrator.cli"]


def obey_supervisor(folder: Path) -> None:
    """Called by a driver: tell the supervisor, if there is one, where the run lies; stop when it dies."""
    note = os.environ.pop(NOTE, "")  # processes that the driver starts are not supervised
    if not note:
        return
    parent, descriptor = (int(part) for part in note.split(":"))
    with os.fdopen(descriptor, "wb") as handle:
        handle.write(json.dumps(str(folder)).encode())
    with contextlib.suppress(OSError, AttributeError):  # not Linux: the driver then outlives it
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
    if os.getppid() != parent:  # it died before the call above took effect
        os.kill(os.getpid(), signal.SIGTERM)


def _start(command: Sequence[str]) -> _Driver:
    """Start a driver in a process group of its own: Ctrl-C at the terminal reaches it through us, once."""
    ours, theirs = os.pipe()
    os.set_blocking(ours, False)
    fcntl.fcntl(ours, fcntl.F_SETFD, fcntl.FD_CLOEXEC)
    root = str(Path(__file__).resolve().parents[2])
    paths = [p for p in os.environ.get("PYTHONPATH", "").split(os.pathsep) if p]
    environment = {
        **os.environ,
        NOTE: f"{os.getpid()}:{theirs}",
        "PYTHONPATH": os.pathsep.join(dict.fromkeys([*paths, root])),
    }
    try:
        process = subprocess.Popen(command, env=environment, pass_fds=[theirs], process_group=0)
    finally:
        os.close(theirs)
    return _Driver(process, ours)


def _worth_a_restart(code: int) -> bool:
    """A temporary cause, or an end that the driver did not choose."""
    return code == TEMPORARY or code < 0


def _ending(code: int) -> str:
    if code >= 0:
        return f"ended with exit code {code} (temporary)"
    try:
        return f"was killed by {signal.Signals(-code).name}"
    except ValueError:
        return f"was killed by signal {-code}"
