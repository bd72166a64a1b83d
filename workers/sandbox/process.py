"""One contained process: started ahead of need by the keeper, fed, read with byte caps, killed, and seen dead."""

from __future__ import annotations

import contextlib
import json
import marshal
import os
import select
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from typing import Any

from policies.base.errors import SandboxUnavailableError
from workers.sandbox.interpreter import ENVIRONMENT
from workers.sandbox.keeper import Keeper
from workers.sandbox.raw_result import Ending, Raw
from workers.sandbox.streams import BLOCK, MAX_DESCRIPTORS, Streams
from workers.sandbox.watch import Watch

MARK = "# pawl sandbox"
"""Opens the program text of every contained process, so that they can be found in a process list."""
BOOT = f"""{MARK}
import sys, marshal
f = open(int(sys.argv[1]), "rb")
g = {{"__name__": "launcher"}}
exec(marshal.loads(f.read(int(f.readline()))), g)
g["main"](f)
"""
CONTROL, INFO = 3, 4
"""Descriptors of a contained process besides the standard ones, until the launcher has read them."""
START_SECONDS = 30.0
DEATH_SECONDS = 10.0


@dataclass(frozen=True)
class Budget:
    """Limits of one job."""

    wall_seconds: float
    output_bytes: int
    """Of standard output, of standard error and of the control socket, each."""
    max_threads: int | None = None
    """Counted from outside, where the kernel cannot be told to count."""
    cpu_seconds: float | None = None
    """Of all threads together, counted from outside: what the code may do to limits of its own does not matter."""
    max_files: int | None = None
    """In the private folder: each takes memory of the kernel, also an empty one."""
    freezes: bool = True
    """Whether a process that answered and lives on stands still until its next job."""


@cache
def _spawner() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(1, thread_name_prefix="sandbox-spawner")


def frame(message: Mapping[str, Any]) -> bytes:
    """A message to the launcher. Version 2 of the format reads alike in every Python."""
    data = marshal.dumps(dict(message), 2)
    return b"%d\n%b" % (len(data), data)


def spawn(
    command: Callable[[int, int], list[str]],
    hello: Callable[[int], bytes],
    keeper: Callable[[], Keeper],
) -> Future[Process]:
    """Start a process ahead of need.

    Args:
        command: what to start, told the descriptors for control and for bwrap's report.
        hello: what the process reads first, told the process number of its parent.
        keeper: who starts it.
    """
    return _spawner().submit(lambda: Process(command, hello, keeper()))


class Process:
    """A contained process."""

    def __init__(
        self,
        command: Callable[[int, int], list[str]],
        hello: Callable[[int], bytes],
        keeper: Keeper,
    ) -> None:
        self._keeper = keeper
        self._control, their_control = socket.socketpair()
        self._info, their_info = os.pipe()
        their_stdin, stdin = os.pipe()
        stdout, their_stdout = os.pipe()
        stderr, their_stderr = os.pipe()
        self._stdin = os.fdopen(stdin, "wb", buffering=0)
        self._stdout = os.fdopen(stdout, "rb", buffering=0)
        self._stderr = os.fdopen(stderr, "rb", buffering=0)
        self._inner: int | None = None
        self._pidfd: int | None = None
        self._handed: list[int] = []
        self._watch: Watch | None = None
        self._ready = False
        self._dead: tuple[int | None, float] | None = None
        theirs = [their_stdin, their_stdout, their_stderr, their_control.fileno(), their_info]
        try:
            self.pid = keeper.start(command(CONTROL, INFO), ENVIRONMENT, theirs)
            self._pidfd = os.pidfd_open(self.pid)
        except BaseException:
            self._control.close()
            self._close_files()
            raise
        finally:
            their_control.close()
            for descriptor in (their_stdin, their_stdout, their_stderr, their_info):
                os.close(descriptor)
        for stream in (self._stdin, self._stdout, self._stderr):
            os.set_blocking(stream.fileno(), False)
        self._control.setblocking(False)
        self._unread = bytearray()
        self._outgoing = bytearray(hello(keeper.pid))
        with contextlib.suppress(OSError):  # gone already: wait_ready says so
            self._send()

    def wait_ready(self, seconds: float = START_SECONDS) -> dict[str, Any]:
        """Return what the launcher says of its layers, once all of them hold.

        Raises:
            SandboxUnavailableError: it did not start; the process is dead.
        """
        with self._dead_on_error():
            raw = self._pump(Budget(seconds, BLOCK), None, lambda line: True)
            # Somebody may have killed it since it was ready, or the keeper, with whom it dies.
            if raw.ending == "done" and self._keeper.serves and not self._has_died():
                line, _, rest = raw.control.partition(b"\n")
                self._unread = bytearray(rest)
                report: dict[str, Any] = json.loads(line)
                self._watch_inner()
                if not self._handed:
                    raise SandboxUnavailableError("the worker has no file descriptors left")
                self._watch, self._handed = Watch(self._handed), []
                self._ready = True
                return report
            self.kill()
        text = raw.stderr.decode("utf-8", "replace").strip()[-600:]
        how = f"took more than {seconds:g} s" if raw.ending == "wall" else f"exit {raw.exit_code}"
        raise SandboxUnavailableError(f"the sandbox does not start ({how}): {text}")

    @contextlib.contextmanager
    def _dead_on_error(self) -> Iterator[None]:
        """Leave no process and no descriptor behind whatever goes wrong here."""
        try:
            yield
        except BaseException:
            with contextlib.suppress(SandboxUnavailableError):
                self.kill()
            raise

    def _has_died(self) -> bool:
        assert self._pidfd is not None
        waiting = select.poll()  # select() takes no descriptor above 1023
        waiting.register(self._pidfd, select.POLLIN)
        return bool(waiting.poll(0))

    def _watch_inner(self) -> None:
        os.set_blocking(self._info, False)
        try:
            report = os.read(self._info, 4096)
        except BlockingIOError:
            return
        if report:
            self._inner = os.pidfd_open(json.loads(report)["child-pid"])

    def exchange(
        self,
        job: Mapping[str, Any],
        budget: Budget,
        is_done: Callable[[bytes], bool],
        stdin: bytes = b"",
    ) -> Raw:
        """Send a job and read until the process ends, a line is the last one, or a limit is hit.

        A process that hit a limit, or that ended, is dead and reaped on return.

        Raises:
            SandboxUnavailableError: how it ended is not known, because somebody killed the keeper.

        Args:
            job: goes to the launcher; plain values only.
            budget: limits, kept from outside.
            is_done: whether a line from the control socket ends the job.
            stdin: what the code finds on its standard input, which is then closed.
        """
        with self._dead_on_error():
            if self._watch is not None:
                self._watch.thaw()
            self._outgoing += frame(job)
            raw = self._pump(budget, stdin, is_done)
            if raw.ending == "done" and self._watch is not None and budget.freezes:
                self._watch.freeze()
            elif raw.ending != "done":
                raw.exit_code, raw.cpu_seconds = self.kill()
                if raw.exit_code is None:
                    raise SandboxUnavailableError(
                        "the sandbox's keeper was lost, and with it this execution"
                    )
        return raw

    def stop(self) -> None:
        """Kill what runs, from another thread than the one that reads from it and clears up then."""
        with contextlib.suppress(SandboxUnavailableError):
            self._keeper.kill(self.pid)

    def _receive(self, descriptor: int) -> bytes:
        """Bytes of one of its streams; and, before it has run foreign code, what the launcher hands over."""
        if self._ready or descriptor != self._control.fileno():
            return os.read(descriptor, BLOCK)
        data, handed, _, _ = socket.recv_fds(
            self._control, BLOCK, MAX_DESCRIPTORS, socket.MSG_CMSG_CLOEXEC
        )
        self._handed += handed
        return data

    def _send(self) -> None:
        while self._outgoing:
            try:
                sent = self._control.send(self._outgoing[:BLOCK], socket.MSG_NOSIGNAL)
            except BlockingIOError:
                return
            del self._outgoing[:sent]

    def _pump(self, budget: Budget, stdin: bytes | None, is_done: Callable[[bytes], bool]) -> Raw:
        raw = Raw(control=self._unread)
        self._unread = bytearray()
        started = time.monotonic()
        deadline = started + budget.wall_seconds
        used = 0.0 if self._watch is None else self._watch.cpu_seconds()
        waiting = Streams(self, raw, stdin)
        checked = 0
        ended = False
        while True:
            ended = waiting.turn(deadline, watch=self._watch is not None)
            while (end := raw.control.find(b"\n", checked)) >= 0:
                line, checked = bytes(raw.control[checked:end]), end + 1
                if is_done(line):
                    waiting.drain()
                    raw.ending = "done"
            sizes = (len(raw.stdout), len(raw.stderr), len(raw.control))
            if max(sizes) > budget.output_bytes:
                raw.ending = "flood"
            elif raw.ending != "done" and not ended:
                over = "wall" if time.monotonic() >= deadline else self._over(budget, used)
                if over is None:
                    continue
                raw.ending = over
            raw.wall_seconds = time.monotonic() - started
            return raw

    def _over(self, budget: Budget, used: float) -> Ending | None:
        """The limit that is kept from outside and was passed, if there is one; `used`: seconds before this job."""
        watch = self._watch
        if watch is None:
            return None
        if budget.cpu_seconds is not None and watch.cpu_seconds() - used > budget.cpu_seconds:
            return "cpu"
        if budget.max_threads is not None and watch.threads() > budget.max_threads:
            return "threads"
        if budget.max_files is not None and watch.num_files() > budget.max_files:
            return "files"
        return None

    def kill(self) -> tuple[int | None, float]:
        """Kill everything, reap it, make sure that nothing is left; calling it again does nothing.

        Returns:
            Exit code and CPU seconds; no exit code when the keeper was lost before it could tell.

        Raises:
            SandboxUnavailableError: something survived.
        """
        if self._dead is not None:
            return self._dead
        assert self._pidfd is not None
        self._dead = (None, 0.0)
        self._control.close()
        try:
            # Killed at an unlucky moment of its start, bwrap leaves its child behind: the keeper ends that as well.
            with contextlib.suppress(
                SandboxUnavailableError
            ):  # lost: then the kernel kills in its place
                self._keeper.kill(self.pid)
            self._await_death(self._pidfd)
            with contextlib.suppress(
                SandboxUnavailableError
            ):  # lost: dead all the same, as just seen
                self._dead = self._keeper.reap(self.pid)
            if self._inner is not None:
                self._await_death(self._inner)
            elif not self._ready:
                self._await_hang_up()
        finally:
            self._close_files()
        return self._dead

    def _close_files(self) -> None:
        for descriptor in (self._pidfd, self._info, self._inner, *self._handed):
            if descriptor is not None:
                os.close(descriptor)
        self._inner, self._handed = None, []
        if self._watch is not None:
            self._watch.close()
            self._watch = None
        for stream in (self._stdin, self._stdout, self._stderr):
            with contextlib.suppress(BrokenPipeError):
                stream.close()

    def _await_death(self, pidfd: int) -> None:
        waiting = select.poll()
        waiting.register(pidfd, select.POLLIN)
        if not waiting.poll(DEATH_SECONDS * 1000):
            raise SandboxUnavailableError(
                f"a sandboxed process outlived SIGKILL by {DEATH_SECONDS:g} s (process {self.pid})"
            )

    def _await_hang_up(self) -> None:
        """Wait until nobody holds standard output: before it ran foreign code, nobody who lives has closed it."""
        waiting = select.poll()
        waiting.register(self._stdout.fileno(), 0)
        if not waiting.poll(DEATH_SECONDS * 1000):
            raise SandboxUnavailableError(
                f"a sandbox that was starting outlived SIGKILL by {DEATH_SECONDS:g} s"
            )
