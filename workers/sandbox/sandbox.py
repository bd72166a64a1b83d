"""The sandbox: runs model-written code where it can do no harm, and says in a typed status how that ended."""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import secrets
import threading
import time
import weakref
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future
from types import TracebackType
from typing import Any, Self

from policies.base.errors import SandboxUnavailableError
from policies.base.records import Json
from workers.sandbox.keeper import keeper
from workers.sandbox.outcome import read_cell, read_replies, result_of
from workers.sandbox.policy import ContainmentPlan, next_uid
from workers.sandbox.probe import choose_plan
from workers.sandbox.process import Process, spawn
from workers.sandbox.settings import (
    CallResult,
    SandboxBackend,
    SandboxResult,
    SandboxSettings,
    SandboxStatus,
)

NUM_START_ATTEMPTS = 3
_PR_SET_DUMPABLE = 4


class Sandbox:
    """Contains Python code. Thread-safe: every execution has a process of its own that serves once.

    Processes are started ahead of need, with all limits on, and wait for code. The one that ran code is
    killed, and its result is not handed out before it and all that it held is gone.
    """

    def __init__(
        self, settings: SandboxSettings | None = None, *, plan: ContainmentPlan | None = None
    ) -> None:
        """Start nothing yet; `prepare`, or the first execution, finds a backend.

        Args:
            settings: limits; the defaults if there are none.
            plan: use this, unproven: for tests that take a layer off, and for measurements.
        """
        self.settings = settings or SandboxSettings()
        self._given = plan
        self._plan: ContainmentPlan | None = None
        self._lock = threading.Lock()
        self._pool: _Pool | None = None
        self._closed = False

    def prepare(self) -> SandboxBackend:
        """Find a backend that passes its own attacks on this machine, and start the first processes.

        The answer holds for this process's life: a sandbox never changes to a weaker backend later.

        Raises:
            SandboxUnavailableError: nothing here can contain code; says what is missing and the remedy.
            ConfigurationError: a package of the settings is not installed.
        """
        with self._lock:
            if self._plan is None:
                self._plan = self._given or choose_plan(self.settings)
                self._pool = _Pool(self._plan)
                weakref.finalize(self, self._pool.close)
            assert self._pool is not None
            self._pool.fill()
            return self._plan.backend

    @property
    def backend(self) -> SandboxBackend:
        """Return what contains the code; prepares if that was not done."""
        return self._prepared()[0].backend

    @property
    def policy_digest(self) -> str:
        """Changes when anything does that containment depends on: backend, limits, launcher, interpreter."""
        return self._prepared()[0].digest

    def run(self, code: str, stdin: bytes = b"") -> SandboxResult:
        """Run a whole program; never raises for what the program does."""
        plan, pool = self._prepared()
        started = time.monotonic()
        try:
            process = pool.take()
            raw = process.exchange(self._job("run", code), plan.budget(), _never, stdin)
        except SandboxUnavailableError as error:
            return _not_started(plan.backend, error, time.monotonic() - started)
        return result_of(raw, plan.backend, self.settings)

    def call(self, code: str, function: str, calls: Sequence[Sequence[Json]]) -> list[CallResult]:
        """Call a function that `code` defines, once per list of arguments, all in one process.

        The code sees its arguments and nothing else: what is expected never enters the process, and what comes
        out is read as strict JSON. Tuples arrive as lists. `A.b` is method `b` of a fresh `A()`.

        Args:
            code: defines the function; it may do anything while it is imported.
            function: name of the function, or `Class.method`.
            calls: arguments of each call, plain JSON.
        """
        plan, pool = self._prepared()
        names = [secrets.token_hex(8) for _ in calls]
        job = self._job("call", code) | {
            "function": function,
            "calls": [
                [name, list(arguments)] for name, arguments in zip(names, calls, strict=True)
            ],
        }
        try:
            process = pool.take()
            raw = process.exchange(job, plan.budget(), _never)
        except SandboxUnavailableError as error:
            return [CallResult(SandboxStatus.START_FAILED, error=str(error)) for _ in calls]
        result = result_of(raw, plan.backend, self.settings)
        return read_replies(bytes(raw.control), names, result)

    def open_session(self) -> SandboxSession:
        """A console whose names live from one cell to the next."""
        self._prepared()
        return SandboxSession(self)

    def close(self) -> None:
        """Kill what stands ready. Sessions are closed by their owners."""
        with self._lock:
            self._closed = True
            pool = self._pool
        if pool is not None:
            pool.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _prepared(self) -> tuple[ContainmentPlan, _Pool]:
        if self._closed:
            raise SandboxUnavailableError("the sandbox was closed")
        if self._plan is None:
            self.prepare()
        assert self._plan is not None
        assert self._pool is not None
        return self._plan, self._pool

    def _job(self, kind: str, code: str) -> dict[str, Any]:
        code = code.encode("utf-8", "replace").decode()  # a lone surrogate is no source text
        return {"kind": kind, "code": code, "cpu_seconds": self.settings.cpu_seconds}


class SandboxSession:
    """Cells that share one namespace, as in a notebook; the value of a last bare expression is printed.

    A limit ends the process. The next cell then starts afresh and says so first in `error`, whatever
    became of it. Between two cells everything in it stands still. One cell runs at a time; `close` may come from any
    thread and ends one that runs.
    """

    def __init__(self, sandbox: Sandbox) -> None:
        """Start nothing yet: the process is taken with the first cell."""
        self._sandbox = sandbox
        self._process: Process | None = None
        self._lost = ""
        self._closed = False
        self._running = threading.Lock()

    def run(self, code: str) -> SandboxResult:
        """Run one cell; never raises for what it does."""
        with self._running:
            return self._run(code)

    def _run(self, code: str) -> SandboxResult:
        sandbox = self._sandbox
        started = time.monotonic()
        name = secrets.token_hex(8)
        plan, pool = sandbox._prepared()
        try:
            process = self._take(pool)
            job = sandbox._job("session", code) | {"id": name}
            raw = process.exchange(job, plan.budget(), lambda line: True)
        except SandboxUnavailableError as error:
            self._process = None
            return _not_started(plan.backend, error, time.monotonic() - started)
        if raw.ending == "done":
            result = read_cell(raw, name, plan.backend, sandbox.settings)
        else:
            result = result_of(raw, plan.backend, sandbox.settings)
            if result.status is SandboxStatus.OK:  # a cell does not end its interpreter unnoticed
                why = "the interpreter exited (os._exit)"
                result = dataclasses.replace(result, status=SandboxStatus.RAISED, error=why)
        if self._lost:
            note = f"The interpreter was started afresh, all names are lost: {self._lost}."
            result = dataclasses.replace(result, error=f"{note}\n{result.error}".strip())
        self._lost = ""
        if raw.ending != "done":
            self._process = None
            self._lost = f"the cell before ended with {result.status.value}"
        elif result.status is SandboxStatus.BAD_REPLY:
            self._end()
            self._lost = "the cell before tampered with its answer"
        return result

    def _take(self, pool: _Pool) -> Process:
        """The process of this session, a new one if there is none.

        Raises:
            SandboxUnavailableError: none starts, or the session was closed, perhaps meanwhile.
        """
        if self._process is None and not self._closed:
            self._process = pool.take()
        if self._closed:
            self._end()
            raise SandboxUnavailableError("the session was closed")
        assert self._process is not None
        return self._process

    def _end(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            process.kill()

    def close(self) -> None:
        """Kill the process, also under a cell that runs; calling it again does nothing."""
        self._closed = True
        process = self._process
        if process is not None:
            process.stop()  # whoever reads from it sees it end, and lets go
        with self._running:
            self._end()


class _Pool:
    """Processes started ahead of need."""

    def __init__(self, plan: ContainmentPlan) -> None:
        self._plan = plan
        self._lock = threading.Lock()
        self._warm: deque[Future[Process]] = deque()
        self._closed = False

    def fill(self) -> None:
        with self._lock:
            while not self._closed and len(self._warm) < self._plan.settings.num_warm:
                self._warm.append(self._start())

    def take(self) -> Process:
        """A process with all limits on that waits for a job.

        Raises:
            SandboxUnavailableError: none starts, after several attempts, or the sandbox was closed.
        """
        failure: SandboxUnavailableError | None = None
        for _ in range(NUM_START_ATTEMPTS):
            with self._lock:
                if self._closed:
                    raise SandboxUnavailableError("the sandbox was closed")
                future = self._warm.popleft() if self._warm else self._start()
            try:
                process = future.result()
                process.wait_ready()
            except SandboxUnavailableError as error:
                failure = error
            except OSError as error:
                failure = SandboxUnavailableError(f"the sandbox does not start: {error}")
            else:
                self.fill()
                return process
        self.fill()
        assert failure is not None
        raise failure

    def _start(self) -> Future[Process]:
        uid = self._plan.uid or next_uid()
        return spawn(self._plan.command(uid), self._plan.hello, keeper)

    def close(self) -> None:
        with self._lock:
            self._closed = True
            warm = list(self._warm)
            self._warm.clear()
        with contextlib.ExitStack() as stack:  # all of them, also when one raises
            for future in warm:
                if future.exception() is None:
                    stack.callback(future.result().kill)


def _never(line: bytes) -> bool:
    return False


def _not_started(
    backend: SandboxBackend, error: SandboxUnavailableError, seconds: float
) -> SandboxResult:
    return SandboxResult(SandboxStatus.START_FAILED, "", str(error), seconds, backend)


def hide_memory() -> None:
    """Make this process's memory, environment and files unreadable to others of its user, for good.

    One more layer for a process that holds expected answers; debuggers and Ray's memory report see less of it.
    """
    ctypes.CDLL(None).prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)
