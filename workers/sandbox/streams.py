"""The open ends of a contained process during one job: what it writes is read with byte caps, what it reads is fed."""

from __future__ import annotations

import contextlib
import os
import select
import socket
import time
from io import FileIO
from typing import Protocol

from workers.sandbox.raw_result import Raw

BLOCK = 65536
WATCH_SECONDS = 0.05
"""Longest time between two looks at what is limited from outside."""
MAX_DESCRIPTORS = 2
"""How many the launcher hands over while it is still trusted."""


class Contained(Protocol):
    """The process as its streams see it."""

    _control: socket.socket
    _stdin: FileIO
    _stdout: FileIO
    _stderr: FileIO
    _pidfd: int | None
    _outgoing: bytearray

    def _receive(self, descriptor: int) -> bytes: ...

    def _send(self) -> None: ...


class Streams:
    """The open ends of a process during one job."""

    def __init__(self, process: Contained, raw: Raw, stdin: bytes | None) -> None:
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
            block = self._process._receive(descriptor)
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
