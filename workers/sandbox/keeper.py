"""The owner's side of the keeper, the process that starts contained processes and ends them when we are gone.

The kernel can end a child together with its parent, but bwrap makes its own child before it asks for that: an
owner that is killed in between, or a bwrap that cannot write its report any more, leaves a child that waits for
ever. Hence the keeper: one small process between us and them (`keeper_main.py`), which outlives us just long enough.
"""

from __future__ import annotations

import atexit
import marshal
import os
import signal
import socket
import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from policies.base.errors import SandboxUnavailableError

_FILE = Path(__file__).with_name("keeper_main.py")
ANSWER_SECONDS = 60.0
_lock = threading.Lock()
_current: Keeper | None = None


class Keeper:
    """A connection to one keeper process. Thread-safe."""

    def __init__(self) -> None:
        """Start it, in a session of its own: what kills our process group must not kill it."""
        self._lock = threading.Lock()
        self._owner = os.getpid()
        self._channel, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._channel.settimeout(ANSWER_SECONDS)
        with theirs:
            self.pid = os.posix_spawn(
                sys.executable,
                [sys.executable, "-I", "-S", str(_FILE), str(self._owner)],
                {"PATH": "/usr/bin:/bin"},
                file_actions=[
                    (os.POSIX_SPAWN_DUP2, theirs.fileno(), 0),
                    (os.POSIX_SPAWN_OPEN, 1, os.devnull, os.O_WRONLY, 0),
                    (os.POSIX_SPAWN_OPEN, 2, os.devnull, os.O_WRONLY, 0),
                ],
                setsid=True,
                setsigmask=[],
                setsigdef=[signal.SIGCHLD],
            )

    @property
    def serves(self) -> bool:
        """False once it was lost, and in a fork of its owner."""
        return self._channel.fileno() >= 0 and self._owner == os.getpid()

    def start(
        self, command: Sequence[str], environment: Mapping[str, str], descriptors: Sequence[int]
    ) -> int:
        """Start a process with the given descriptors as its 0, 1, 2, ...; returns its number.

        Raises:
            OSError: the program cannot be executed.
            SandboxUnavailableError: the keeper is gone.
        """
        request = {"do": "start", "command": list(command), "environment": dict(environment)}
        answer = self._ask(request, descriptors)
        if "error" in answer:
            raise OSError(answer["errno"], answer["error"])
        return int(answer["pid"])

    def kill(self, pid: int) -> None:
        """Kill a process that was started here, with its group; harmless when it is dead or reaped.

        Raises:
            SandboxUnavailableError: the keeper is gone; it took with it what it kept.
        """
        self._ask({"do": "kill", "pid": pid}, ())

    def reap(self, pid: int) -> tuple[int, float]:
        """Take leave of a process that is dead; returns exit code (a signal is negative) and CPU seconds.

        Raises:
            SandboxUnavailableError: the keeper is gone, and with it what it kept, or knows no such child.
        """
        answer = self._ask({"do": "reap", "pid": pid}, ())
        if "error" in answer:
            raise SandboxUnavailableError(f"the sandbox's keeper cannot reap: {answer['error']}")
        return os.waitstatus_to_exitcode(answer["status"]), float(answer["cpu_seconds"])

    def _ask(self, request: Mapping[str, Any], descriptors: Sequence[int]) -> dict[str, Any]:
        with self._lock:
            try:
                socket.send_fds(self._channel, [marshal.dumps(dict(request))], list(descriptors))
                data = self._channel.recv(65536)
            except TimeoutError as error:
                self._lose()
                raise SandboxUnavailableError(
                    f"the sandbox's keeper (process {self.pid}) did not {request['do']} a process within "
                    f"{ANSWER_SECONDS:g} s"
                ) from error
            except OSError as error:
                self._lose()
                raise SandboxUnavailableError(f"the sandbox's keeper is gone: {error}") from error
            if not data:
                self._lose()
                raise SandboxUnavailableError("the sandbox's keeper is gone (somebody killed it)")
            answer: dict[str, Any] = marshal.loads(data)  # nosec B302 # plain values, from our own process
            return answer

    def _lose(self) -> None:
        """Hang up, upon which a keeper that still lives ends all that it kept."""
        self._channel.close()


def keeper() -> Keeper:
    """The keeper of this process, started at the first call, and again after it was lost."""
    global _current
    with _lock:
        if _current is None or not _current.serves:
            if _current is not None:
                _current._lose()
            _current = Keeper()
        return _current


@atexit.register
def _hang_up() -> None:
    if _current is not None:
        _current._lose()
