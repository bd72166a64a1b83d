"""One contained process: started ahead of need by the keeper, fed, read with byte caps, killed, and seen dead."""

from __future__ import annotations

import contextlib
import json
import marshal
import os
import select
import socket
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Literal

from policies.errors import SandboxUnavailableError
from workers.sandbox.interpreter import ENVIRONMENT
from workers.sandbox.keeper import Keeper

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
WATCH_SECONDS = 0.05
BLOCK = 65536

Ending = Literal["exit", "done", "wall", "flood", "threads", "start"]


@dataclass(frozen=True)
class Budget:
    """What one job may take."""

    wall_seconds: float
    output_bytes: int
    """Of standard output, of standard error and of the control socket, each."""
    max_threads: int | None = None
    """Counted from outside, where the kernel cannot be told to count."""


@dataclass
class Raw:
    """What came out of a process, uninterpreted."""

    stdout: bytearray = field(default_factory=bytearray)
    stderr: bytearray = field(default_factory=bytearray)
    control: bytearray = field(default_factory=bytearray)
    ending: Ending = "exit"
    exit_code: int | None = None
    """As `subprocess` counts: a signal is negative; None while the process lives."""
    cpu_seconds: float = 0.0
    wall_seconds: float = 0.0


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
        self._ready = False
        self._dead: tuple[int | None, float] | None = None
        with contextlib.suppress(OSError):  # gone already: wait_ready says so
            self._send()

    def wait_ready(self, seconds: float = START_SECONDS) -> dict[str, Any]:
        """What the launcher says of its layers, once all of them hold.

        Raises:
            SandboxUnavailableError: it did not start; the process is dead.
        """
        raw = self._pump(Budget(seconds, BLOCK), None, lambda line: True)
        # Somebody may have killed it since it was ready, or the keeper, with whom it dies.
        if raw.ending == "done" and self._keeper.serves and not self._has_died():
            line, _, rest = raw.control.partition(b"\n")
            self._unread = bytearray(rest)
            report: dict[str, Any] = json.loads(line)
            self._watch_inner()
            self._ready = True
            return report
        self.kill()
        text = raw.stderr.decode("utf-8", "replace").strip()[-600:]
        how = f"took more than {seconds:g} s" if raw.ending == "wall" else f"exit {raw.exit_code}"
        raise SandboxUnavailableError(f"the sandbox does not start ({how}): {text}")

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
        self._outgoing += frame(job)
        raw = self._pump(budget, stdin, is_done)
        if raw.ending != "done":
            raw.exit_code, raw.cpu_seconds = self.kill()
            if raw.exit_code is None:
                raise SandboxUnavailableError(
                    "the sandbox's keeper was lost, and with it this execution"
                )
        return raw

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
        waiting = _Streams(self, raw, stdin)
        checked = 0
        ended = False
        while True:
            ended = waiting.turn(deadline, watch=budget.max_threads is not None)
            while (end := raw.control.find(b"\n", checked)) >= 0:
                line, checked = bytes(raw.control[checked:end]), end + 1
                if is_done(line):
                    waiting.drain()
                    raw.ending = "done"
            sizes = (len(raw.stdout), len(raw.stderr), len(raw.control))
            if max(sizes) > budget.output_bytes:
                raw.ending = "flood"
            elif raw.ending != "done" and not ended:
                if time.monotonic() >= deadline:
                    raw.ending = "wall"
                elif budget.max_threads is not None and self._threads() > budget.max_threads:
                    raw.ending = "threads"
                else:
                    continue
            raw.wall_seconds = time.monotonic() - started
            return raw

    def _threads(self) -> int:
        try:
            text = Path(f"/proc/{self.pid}/stat").read_text(encoding="ascii", errors="replace")
        except OSError:
            return 0
        return int(text.rpartition(")")[2].split()[17])

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
        for descriptor in (self._pidfd, self._info, self._inner):
            if descriptor is not None:
                os.close(descriptor)
        self._inner = None
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


class _Streams:
    """The open ends of a process during one job."""

    def __init__(self, process: Process, raw: Raw, stdin: bytes | None) -> None:
        self._process = process
        self._raw = raw
        self._feeds = stdin is not None  # else it stays open for a later job
        self._stdin = memoryview(stdin or b"")
        self._poll = select.poll()
        self._inputs: dict[int, bytearray] = {}
        for descriptor, target in (
            (process._stdout.fileno(), raw.stdout),
            (process._stderr.fileno(), raw.stderr),
            (process._control.fileno(), raw.control),
        ):
            self._inputs[descriptor] = target
            self._poll.register(descriptor, select.POLLIN)
        assert process._pidfd is not None
        self._poll.register(process._pidfd, select.POLLIN)

    def turn(self, deadline: float, *, watch: bool) -> bool:
        """Wait for something to happen and deal with it; True when the process has ended."""
        self._write()
        rest = max(0.0, deadline - time.monotonic())
        rest = min(rest, WATCH_SECONDS) if watch else rest
        events = self._poll.poll(rest * 1000 + 0.5)
        ended = False
        for descriptor, _ in events:
            if descriptor == self._process._pidfd:
                ended = True
            elif descriptor in self._inputs:
                self._read(descriptor)
        if ended:
            self.drain()
        return ended

    def drain(self) -> None:
        """Read what is there already, but do not wait for a writer that goes on."""
        for descriptor in list(self._inputs):
            for _ in range(16):  # a pipe holds 16 blocks; a writer that goes on is not waited for
                if descriptor not in self._inputs or not self._read(descriptor):
                    break

    def _read(self, descriptor: int) -> bool:
        try:
            block = os.read(descriptor, BLOCK)
        except BlockingIOError:
            return False
        except ConnectionResetError:  # it died with unread input
            block = b""
        if not block:
            self._poll.unregister(descriptor)
            del self._inputs[descriptor]
            return False
        self._inputs[descriptor] += block
        return True

    def _write(self) -> None:
        process = self._process
        try:
            process._send()
        except (BrokenPipeError, ConnectionResetError):
            process._outgoing.clear()
        control = process._control.fileno()
        if control in self._inputs:
            wanted = select.POLLIN | (select.POLLOUT if process._outgoing else 0)
            self._poll.modify(control, wanted)
        self._feed()

    def _feed(self) -> None:
        pipe = self._process._stdin
        if not self._feeds or pipe.closed or self._process._outgoing:
            return
        try:
            while self._stdin:
                self._stdin = self._stdin[os.write(pipe.fileno(), self._stdin[:BLOCK]) :]
        except BlockingIOError:
            self._poll.register(pipe.fileno(), select.POLLOUT)
            return
        except BrokenPipeError:
            self._stdin = self._stdin[:0]  # the code does not read: what is left is never asked for
        with contextlib.suppress(KeyError):
            self._poll.unregister(pipe.fileno())
        pipe.close()
