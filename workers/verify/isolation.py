"""Verifiers in processes of their own: what they raise, print, leak or never finish stays there.

Each verifier has one child process (see `child.py`) in its own process group, with an environment from an
allow-list, so that no token reaches foreign code. A timeout or a death is an error verdict; the next
trajectory gets a new process. This contains accidents, not attacks: code that must not be trusted at all
belongs in the sandbox.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import IO, Self, TypeVar

from policies.errors import VerificationError, explain
from policies.records import Prompt, Record, Trajectory, Verdict, VerdictStatus
from workers.verify.child import Hello, Reply, Started
from workers.verify.verifier import Verifier

M = TypeVar("M", bound=Record)

MAX_START_FAILURES = 3
"""After so many failed starts in a row the same error is reported without another process."""
MAX_REPLY_BYTES = 4 * 2**20
STDERR_TAIL_BYTES = 2048
MAX_ERROR_CHARACTERS = 3000

_ALLOWED = re.compile(
    r"PATH|HOME|USER|LANG|LANGUAGE|LC_\w+|TZ|TMPDIR|VIRTUAL_ENV|CONDA_PREFIX|LD_LIBRARY_PATH|PYTHONHASHSEED"
    r"|\w+_NUM_THREADS|CUDA_VISIBLE_DEVICES|HF_HOME|HF_HUB_OFFLINE|HF_DATASETS_OFFLINE|TRANSFORMERS_OFFLINE"
)
_ADDRESS = re.compile(r"\b0x[0-9a-f]{6,}\b")
_CONTROL = re.compile(r"[^\S\n\t ]|[\x00-\x08\x0b-\x1f\x7f-\x9f]")


class _TimedOutError(Exception):
    """Nothing complete came before the deadline."""


class _LostError(Exception):
    """The process hung up, or what it sent is not of the protocol."""


class IsolatedVerifier:
    """One verifier behind a process boundary; every call returns a verdict per trajectory, whatever happens.

    All its work runs on one thread that lives until `close`, because the kernel ends the child together
    with the thread that started it: that is what makes the child die when this process is killed.
    """

    def __init__(self, config: Verifier.Config, *, start_timeout_seconds: float = 120.0) -> None:
        """Start nothing yet: the process starts with the first trajectory.

        Args:
            config: settings of the verifier.
            start_timeout_seconds: longest time for the process to import and prepare the verifier.
        """
        self.config = config
        self._start_timeout_seconds = start_timeout_seconds
        self._thread = ThreadPoolExecutor(1, thread_name_prefix=f"verifier-{config.source}")
        self._child: _Child | None = None
        self._closed = False
        self._num_requests = 0
        self._num_start_failures = 0
        self._start_failure = ""

    def submit(self, items: Sequence[tuple[Prompt, Trajectory]]) -> Future[list[Verdict]]:
        """Start judging `items` in order; several verifiers work side by side this way."""
        return self._thread.submit(self._judge_all, items)

    def verify(self, prompt: Prompt, trajectory: Trajectory) -> Verdict:
        """The verdict on one trajectory."""
        return self.submit([(prompt, trajectory)]).result()[0]

    def close(self) -> None:
        """Kill the process, whatever it is doing, and end the thread."""
        self._closed = True
        child = self._child
        if child is not None:
            child.kill()
        self._thread.shutdown(wait=True, cancel_futures=True)
        if self._child is not None:
            self._child.kill()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _judge_all(self, items: Sequence[tuple[Prompt, Trajectory]]) -> list[Verdict]:
        written: dict[str, str] = {}
        verdicts = []
        for prompt, trajectory in items:
            if prompt.id not in written:
                written = {prompt.id: prompt.model_dump_json()}  # a group comes in one piece
            verdicts.append(self._judge(written[prompt.id], trajectory))
        return verdicts

    def _judge(self, prompt_json: str, trajectory: Trajectory) -> Verdict:
        try:
            child = self._running_child()
        except VerificationError as error:
            return self._failed(trajectory, str(error), 0.0)
        self._num_requests += 1
        number = self._num_requests
        line = f'{{"id":{number},"prompt":{prompt_json},"trajectory":{trajectory.model_dump_json()}}}\n'
        started = time.monotonic()
        try:
            reply = child.exchange(line.encode(), Reply, self.config.timeout_seconds)
            self._check(reply, number, trajectory)
        except _TimedOutError:
            error_text = (
                f"timed out after {self.config.timeout_seconds:g} s (verifiers[...].timeout_seconds). "
                "Fix: raise it, or make the verifier faster"
            )
        except _LostError as error:
            error_text = child.epitaph(str(error))
        else:
            return _received(reply.verdict, time.monotonic() - started)
        self._discard()
        return self._failed(trajectory, error_text, time.monotonic() - started)

    def _check(self, reply: Reply, number: int, trajectory: Trajectory) -> None:
        if reply.id != number:
            raise _LostError(f"answered request {reply.id} instead of {number}")
        verdict = reply.verdict
        if verdict.trajectory_id != trajectory.id:
            raise _LostError(
                f"gave a verdict on {verdict.trajectory_id!r} instead of {trajectory.id!r}"
            )
        if verdict.source != self.config.source:
            raise _LostError(
                f"signed its verdict {verdict.source!r} instead of {self.config.source!r}"
            )

    def _failed(self, trajectory: Trajectory, text: str, seconds: float) -> Verdict:
        return Verdict(
            source=self.config.source,
            trajectory_id=trajectory.id,
            status=VerdictStatus.ERROR,
            error=clean_text(text),
            seconds=seconds,
        )

    def _running_child(self) -> _Child:
        if self._child is not None:
            return self._child
        if self._closed:
            raise VerificationError(f"verifier {self.config.source!r} was closed")
        if self._num_start_failures >= MAX_START_FAILURES:
            raise VerificationError(self._start_failure)
        self._child = _Child()
        try:
            hello = Hello(config=self.config.model_dump(mode="json"))
            line = hello.model_dump_json().encode() + b"\n"
            started = self._child.exchange(line, Started, self._start_timeout_seconds)
            failure = "" if started.ready else started.failed
        except _TimedOutError:
            failure = self._child.epitaph(
                f"took more than {self._start_timeout_seconds:g} s to start"
            )
        except _LostError as error:
            failure = self._child.epitaph(str(error))
        if not failure:
            self._num_start_failures = 0
            return self._child
        self._discard()
        self._num_start_failures += 1
        self._start_failure = explain(
            f"verifier {self.config.source!r} does not start: {failure}",
            value=self.config.type,
            where="verifiers[...]",
            fix="run `pawl validate`, or import the verifier in a Python shell",
        )
        raise VerificationError(self._start_failure)

    def _discard(self) -> None:
        if self._child is not None:
            self._child.kill()
            self._child = None


class _Child:
    """A running process and the socket to it."""

    def __init__(self) -> None:
        self._socket, theirs = socket.socketpair()
        self._buffer = bytearray()
        self._killed = False
        with theirs:
            self._process = subprocess.Popen(
                [
                    *(sys.executable, "-P", "-m", "workers.verify.child"),
                    *(str(theirs.fileno()), str(os.getpid())),
                ],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                pass_fds=[theirs.fileno()],
                env=child_environment(os.environ),
                start_new_session=True,
            )
        assert self._process.stderr is not None
        self._stderr = _Tail(self._process.stderr)

    def exchange(self, line: bytes, kind: type[M], timeout_seconds: float) -> M:
        """Send one line and return the line that comes back, as a record of `kind`."""
        deadline = time.monotonic() + timeout_seconds
        try:
            self._socket.settimeout(timeout_seconds)
            self._socket.sendall(line)
            reply = self._read_line(deadline)
        except TimeoutError as error:
            raise _TimedOutError from error
        except OSError as error:
            raise _LostError("hung up") from error
        try:
            return kind.model_validate_json(reply)
        except ValueError as error:
            raise _LostError(f"sent what is not a {kind.__name__}: {str(error)[:300]}") from error

    def _read_line(self, deadline: float) -> bytes:
        while (end := self._buffer.find(b"\n")) < 0:
            remaining = deadline - time.monotonic()
            if remaining <= 0:
                raise _TimedOutError
            self._socket.settimeout(remaining)
            block = self._socket.recv(65536)
            if not block:
                raise _LostError("hung up")
            self._buffer += block
            if len(self._buffer) > MAX_REPLY_BYTES:
                raise _LostError(f"sent more than {MAX_REPLY_BYTES} bytes in one answer")
        line = bytes(self._buffer[:end])
        del self._buffer[: end + 1]
        return line

    def epitaph(self, what: str) -> str:
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
        """Kill the process group and wait for the process; calling it again does nothing."""
        if not self._killed:  # once: afterwards the group's number may belong to others
            self._killed = True
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()


class _Tail:
    """Reads a pipe to its end, so that its writer never blocks, and keeps the last bytes."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream = stream
        self._kept = b""
        self._thread = threading.Thread(target=self._drain, name="verifier-stderr", daemon=True)
        self._thread.start()

    def _drain(self) -> None:
        with self._stream:
            while block := os.read(self._stream.fileno(), 65536):
                self._kept = (self._kept + block)[-STDERR_TAIL_BYTES:]

    def text(self) -> str:
        """The end of what was written, once the writer is gone."""
        self._thread.join(1.0)
        return self._kept.decode("utf-8", "replace").strip()


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
    """Error text fit for files, terminals and comparison between runs: no control characters or addresses."""
    text = _CONTROL.sub(" ", _ADDRESS.sub("0x..", text)).strip()
    half = MAX_ERROR_CHARACTERS // 2
    return text if len(text) <= MAX_ERROR_CHARACTERS else f"{text[:half]} [...] {text[-half:]}"


def _received(verdict: Verdict, seconds: float) -> Verdict:
    error = None if verdict.error is None else clean_text(verdict.error)
    changes = {"seconds": seconds, "error": error, "rationale": clean_text(verdict.rationale)}
    return verdict.model_copy(update=changes)


def _signal_name(number: int) -> str:
    try:
        return f"signal {number} ({signal.Signals(number).name})"
    except ValueError:
        return f"signal {number}"
