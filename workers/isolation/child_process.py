"""Processes of our own for other people's code: one JSON object per line over a socket, killed as a group.

A child has its own process group and an environment from an allow-list, so that no token reaches foreign code. This
contains accidents, not attacks: code that must not be trusted at all belongs in the sandbox.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import resource
import secrets
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import IO, TypeVar

from policies.base.records import Record
from policies.base.redaction import redact_secrets

M = TypeVar("M", bound=Record)

MAX_REPLY_BYTES = 4 * 2**20
STDERR_TAIL_BYTES = 2048
MAX_ERROR_CHARACTERS = 3000

_DEATH_SECONDS = 10.0
"""Longest wait for a process that was killed."""
_PR_SET_PDEATHSIG = 1
_ALLOWED = re.compile(
    r"PATH|HOME|USER|LANG|LANGUAGE|LC_\w+|TZ|TMPDIR|VIRTUAL_ENV|CONDA_PREFIX|LD_LIBRARY_PATH|PYTHONHASHSEED"
    r"|\w+_NUM_THREADS|CUDA_VISIBLE_DEVICES|HF_HOME|HF_HUB_OFFLINE|HF_DATASETS_OFFLINE|TRANSFORMERS_OFFLINE"
)
_MARK = "PAWL_CHILD"
"""Variable by which a child's descendants are known; a fork keeps it, whatever session it is in."""
_ADDRESS = re.compile(r"\b0x[0-9a-f]{6,}\b")
_CONTROL = re.compile(r"[^\S\n\t ]|[\x00-\x08\x0b-\x1f\x7f-\x9f]")


class ChildTimedOutError(Exception):
    """Nothing complete came before the deadline."""


class ChildLostError(Exception):
    """The process hung up, or what it sent is not of the protocol."""


class ChildProcess:
    """A running `python -m module SOCKET_FD PARENT_PID`, and the socket to it.

    Start it on a thread that lives as long as the child may: the kernel ends the child together with the thread that
    started it, which is what makes the child die when this process is killed.
    """

    def __init__(
        self,
        module: str,
        *,
        environment: Mapping[str, str] | None = None,
        secrets_kept: Collection[str] = (),
    ) -> None:
        """Start the process.

        Args:
            module: what it runs; begins with `begin_as_child`.
            secrets_kept: variables that it may see besides those of the allow-list, by name.
            environment: its variables, in the place of the allow-list. What it prints is kept like its errors then,
                and processes that it leaves behind in sessions of their own are found and killed with it.
        """
        self._socket, theirs = socket.socketpair()
        self._buffer = bytearray()
        self._killed = False
        self._killing = threading.Lock()
        self._mark = "" if environment is None else secrets.token_hex(16)
        kept = {name: os.environ[name] for name in secrets_kept if name in os.environ}
        given = child_environment(os.environ) if environment is None else dict(environment)
        given |= kept
        reading, writing = os.pipe()
        with theirs, open(writing, "wb", buffering=0) as output:
            self._process = subprocess.Popen(
                [
                    *(sys.executable, "-P", "-m", module),
                    *(str(theirs.fileno()), str(os.getpid())),
                ],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL if environment is None else output,
                stderr=output,
                pass_fds=[theirs.fileno()],
                env={**given, _MARK: self._mark} if self._mark else given,
                start_new_session=True,
            )
        self._stderr = _Tail(open(reading, "rb", buffering=0))  # noqa: SIM115 # its thread closes it

    @property
    def num_output_bytes(self) -> int:
        """Tell how much it has written to its standard streams, as far as they are kept."""
        return self._stderr.num_bytes

    def exchange(self, line: bytes, kind: type[M], timeout_seconds: float) -> M:
        """Send one line and return the line that comes back, as a record of `kind`.

        Raises:
            ChildTimedOutError: no whole line came in time.
            ChildLostError: the process hung up, or sent something else.
        """
        return self._received(kind, timeout_seconds, line)

    def next_line(self, kind: type[M], timeout_seconds: float) -> M:
        """One more line of an answer that comes in several.

        Raises:
            ChildTimedOutError: no whole line came in time.
            ChildLostError: the process hung up, or sent something else.
        """
        return self._received(kind, timeout_seconds, b"")

    def _received(self, kind: type[M], timeout_seconds: float, line: bytes) -> M:
        deadline = time.monotonic() + timeout_seconds
        try:
            self._socket.settimeout(timeout_seconds)
            if line:
                self._socket.sendall(line)
            reply = self._read_line(deadline)
        except TimeoutError as error:
            raise ChildTimedOutError from error
        except OSError as error:
            raise ChildLostError("hung up") from error
        try:
            return kind.model_validate_json(reply)
        except ValueError as error:
            raise ChildLostError(
                f"sent what is not a {kind.__name__}: {str(error)[:300]}"
            ) from error

    def _read_line(self, deadline: float) -> bytes:
        while (end := self._buffer.find(b"\n")) < 0:
            remaining = deadline - time.monotonic()
            if remaining <= 0:
                raise ChildTimedOutError
            self._socket.settimeout(remaining)
            block = self._socket.recv(65536)
            if not block:
                raise ChildLostError("hung up")
            self._buffer += block
            if len(self._buffer) > MAX_REPLY_BYTES:
                raise ChildLostError(f"sent more than {MAX_REPLY_BYTES} bytes in one answer")
        line = bytes(self._buffer[:end])
        del self._buffer[: end + 1]
        return line

    def exit_report(self, what: str) -> str:
        """Kill the process and tell how it ended, with the last lines that it wrote to stderr."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(0.5)
        code = self._process.returncode
        self.kill()
        if code is None:
            ending = f"its process {what} and was killed"
        elif code < 0:
            ending = f"its process died of {_signal_name(-code)}"
        else:
            ending = f"its process ended with exit code {code}"
        tail = self._stderr.text()
        return f"{ending}; last lines of its stderr: {tail}" if tail else ending

    def kill(self) -> None:
        """Kill the process group and wait for the process; from any thread, and again does nothing."""
        with self._killing:
            if not self._killed:  # once: afterwards the group's number may belong to others
                self._killed = True
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(self._process.pid, signal.SIGKILL)
                if self._mark:
                    _kill_marked(f"{_MARK}={self._mark}".encode())
            # One that sits in the kernel (a dead network file system) outlives SIGKILL; nobody waits for that.
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(_DEATH_SECONDS)
            with contextlib.suppress(OSError):
                self._socket.shutdown(socket.SHUT_RDWR)
            self._socket.close()


class _Tail:
    """Reads a pipe to its end, so that its writer never blocks, and keeps the last bytes."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream = stream
        self._kept = b""
        self.num_bytes = 0
        self._thread = threading.Thread(target=self._drain, name="child-stderr", daemon=True)
        self._thread.start()

    def _drain(self) -> None:
        with self._stream:
            while block := os.read(self._stream.fileno(), 65536):
                self.num_bytes += len(block)
                self._kept = (self._kept + block)[-STDERR_TAIL_BYTES:]

    def text(self) -> str:
        """The end of what was written, once the writer is gone."""
        self._thread.join(1.0)
        return self._kept.decode("utf-8", "replace").strip()


def _kill_marked(mark: bytes) -> None:
    """Kill every process that was started with `mark` in its environment: daemons that left the group."""
    for status in Path("/proc").glob("[0-9]*/environ"):
        with contextlib.suppress(OSError):
            if mark in status.read_bytes().split(b"\0"):
                os.kill(int(status.parent.name), signal.SIGKILL)


def child_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """The variables a child gets: an allow-list, and this process's import path; no tokens, no keys."""
    allowed = {name: value for name, value in environment.items() if _ALLOWED.fullmatch(name)}
    root = str(Path(__file__).resolve().parents[2])
    paths = [str(Path(entry).resolve()) for entry in sys.path]
    if root not in paths:
        paths.append(root)
    defaults = {"PYTHONHASHSEED": "0", "OMP_NUM_THREADS": "1"}
    return defaults | allowed | {"PYTHONPATH": os.pathsep.join(dict.fromkeys(paths))}


def clean_text(text: str) -> str:
    """Error text fit for files, terminals and comparison between runs: no secrets, control characters, addresses."""
    text = _CONTROL.sub(" ", _ADDRESS.sub("0x..", redact_secrets(text))).strip()
    half = MAX_ERROR_CHARACTERS // 2
    return text if len(text) <= MAX_ERROR_CHARACTERS else f"{text[:half]} [...] {text[-half:]}"


def storable(text: str) -> str:
    """`text` without lone surrogates, which neither JSON nor Parquet can carry; an exception's text may have them."""
    return text.encode("utf-8", "replace").decode("utf-8")


def line_of(message: Record) -> bytes:
    """A record as one line of the protocol."""
    return message.model_dump_json().encode() + b"\n"


def begin_as_child() -> socket.socket:
    """Called first in the child: ties its life to the parent's and returns the socket to the parent."""
    descriptor, parent = int(sys.argv[1]), int(sys.argv[2])
    _die_with(parent)
    _be_the_first_to_go()
    return socket.socket(fileno=descriptor)


def _die_with(parent: int) -> None:
    """Let the kernel kill this process when its parent's thread ends, even inside C code that holds the GIL."""
    with contextlib.suppress(
        OSError, AttributeError
    ):  # not Linux: the closed socket ends an idle child
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:  # it died before the call above took effect
        sys.exit(1)


def _be_the_first_to_go() -> None:
    """Let the kernel's out-of-memory killer choose this process before the worker; write no core files."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000", encoding="ascii")


def _signal_name(number: int) -> str:
    try:
        return f"signal {number} ({signal.Signals(number).name})"
    except ValueError:
        return f"signal {number}"
