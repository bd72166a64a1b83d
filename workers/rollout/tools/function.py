"""A user's plain function as a tool, in processes of its own: `type: ./my_tools.py:search`.

    def search(query: str, limit: int = 3) -> str:
        '''Searches the notes.'''
        ...

Name, schema and checks of the arguments come from the signature, the type hints and the docstring (its first
paragraph, and a section `Args:` with a line for each parameter).
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from pydantic import Field

from policies.base.bounds import MAX_SECONDS, MAX_WORKERS
from policies.base.errors import ConfigurationError, RolloutError, explain
from policies.base.records import Json, ToolCallStatus
from workers.isolation.child_process import (
    ChildLostError,
    ChildProcess,
    ChildTimedOutError,
    clean_text,
    line_of,
)
from workers.rollout.function_tool.child import Hello, Reply, Request, Started
from workers.rollout.tool import Tool, ToolOutput, ToolSession

_SPAWN_SECONDS = 60.0
"""Longest wait for the operating system to start a process; what it does then has a timeout of its own."""


class Function(Tool):
    """Calls the function in a child process; one that hangs, crashes or talks rubbish is killed and replaced.

    Texts, numbers, booleans, lists and dicts that are JSON become text; None, bytes and other objects are
    `bad_output`. Calls at the same time get a process each; processes are used again, so the function should keep no
    state of a trajectory. What it prints is not shown. This contains accidents, not attacks: it is your code.
    """

    class Config(Tool.Config):
        """Settings of `function`."""

        function: str
        """`package.module:name` or `./file.py:name`; the name by which the policy calls it is `name` unless set."""
        start_timeout_seconds: float = Field(default=60.0, gt=0, le=MAX_SECONDS)
        """Longest time for a process to import the function's module."""
        idle_processes: int = Field(default=2, ge=0, le=MAX_WORKERS)
        """How many processes are kept between calls."""

        @property
        def called(self) -> str:
            return self.name or self.function.rpartition(":")[2]

    config: Config

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self._processes = _FunctionProcesses(config)

    def prepare(self) -> None:
        try:
            self._processes.give_back(self._processes.take())
        except RolloutError as error:
            raise ConfigurationError(
                explain(
                    f"the tool {self.config.called!r} does not start: {error}",
                    value=self.config.function,
                    where="rollout.tools[...].function",
                    fix="name a function as package.module:name or ./file.py:name, and import it in a Python shell",
                )
            ) from error

    def schema(self) -> dict[str, Any]:
        if self._processes.started is None:
            self.prepare()
        started = self._processes.started
        assert started is not None
        function = {
            "name": self.config.called,
            "description": started.description,
            "parameters": started.parameters,
        }
        return {"type": "function", "function": function}

    def open(self, seed: int) -> ToolSession:
        return _FunctionSession(self)

    def close(self) -> None:
        self._processes.close()

    def called_with(self, arguments: Mapping[str, Json]) -> ToolOutput:
        """One call, in a process that is free or new."""
        try:
            number, line = self._processes.request(arguments)
        except ValueError:  # half of a surrogate pair, or nested deeper than anyone means
            return self.output(
                "Error: the arguments are not plain JSON", ToolCallStatus.BAD_ARGUMENTS
            )
        try:
            child = self._processes.take()
        except RolloutError as error:
            return self.output(f"Error: {error}", ToolCallStatus.UNAVAILABLE)
        try:
            reply = child.exchange(line, Reply, self.config.timeout_seconds)
            if reply.id != number:
                raise ChildLostError(f"answered call {reply.id} instead of {number}")
        except ChildTimedOutError:
            self._processes.discard(child)
            text = f"Error: no answer within {self.config.timeout_seconds:g} s"
            return self.output(text, ToolCallStatus.TIMED_OUT)
        except ChildLostError as error:
            return self._lost(child, error)
        self._processes.give_back(child)
        return self.output(reply.text, reply.status)

    def _lost(self, child: ChildProcess, error: ChildLostError) -> ToolOutput:
        text = clean_text(child.exit_report(str(error))).replace("\n", " ")
        self._processes.discard(child)
        if self._processes.closed:
            return self.output("Error: the tool was closed", ToolCallStatus.UNAVAILABLE)
        return self.output(f"Error: {text}", ToolCallStatus.FAILED)


class _FunctionSession(ToolSession):
    def __init__(self, tool: Function) -> None:
        self._tool = tool

    def call(self, arguments: Mapping[str, Json]) -> ToolOutput:
        return self._tool.called_with(arguments)


class _FunctionProcesses:
    """Child processes that serve one function: taken for one call each, given back, or thrown away."""

    def __init__(self, config: Function.Config) -> None:
        self.started: Started | None = None
        self.closed = False
        self._config = config
        # All children start on one thread that lives until `close`: see ChildProcess.
        self._starter = ThreadPoolExecutor(1, thread_name_prefix=f"tool-{config.called}")
        self._lock = threading.Lock()
        self._idle: list[ChildProcess] = []
        self._all: set[ChildProcess] = set()
        self._num_requests = 0

    def take(self) -> ChildProcess:
        """A process that is ready for a call.

        Raises:
            RolloutError: none starts, or the tool was closed.
        """
        with self._lock:
            if self._idle:
                return self._idle.pop()
        child = self._start()
        hello = Hello(
            function=self._config.function, max_characters=self._config.max_output_characters
        )
        seconds = self._config.start_timeout_seconds
        try:
            started = child.exchange(line_of(hello), Started, seconds)
        except ChildTimedOutError:
            failure = child.exit_report(f"took more than {seconds:g} s to start")
        except ChildLostError as error:
            failure = child.exit_report(str(error))
        else:
            failure = started.failed
        if failure:
            self.discard(child)
            raise RolloutError(clean_text(failure))
        self.started = started
        return child

    def _start(self) -> ChildProcess:
        with self._lock:
            if self.closed:
                raise RolloutError("the tool was closed")
            starting = self._starter.submit(ChildProcess, "workers.rollout.function_tool.child")
            try:
                child = starting.result(_SPAWN_SECONDS)
            except TimeoutError as error:
                raise RolloutError(
                    f"no process for the tool could be started within {_SPAWN_SECONDS:g} s. Fix: look for a file "
                    "system that hangs, or a machine without free processes"
                ) from error
            self._all.add(child)
            return child

    def request(self, arguments: Mapping[str, Json]) -> tuple[int, bytes]:
        """Number and line of a call.

        Raises:
            ValueError: the arguments cannot be written as JSON.
        """
        with self._lock:
            self._num_requests += 1
            number = self._num_requests
        return number, line_of(Request(id=number, arguments=dict(arguments)))

    def give_back(self, child: ChildProcess) -> None:
        """Keep `child` for the next call, or end it when enough are kept."""
        with self._lock:
            if not self.closed and len(self._idle) < self._config.idle_processes:
                self._idle.append(child)
                return
        self.discard(child)

    def discard(self, child: ChildProcess) -> None:
        """Kill `child`, whatever it is doing."""
        child.kill()
        with self._lock:
            self._all.discard(child)

    def close(self) -> None:
        """Kill all processes, busy ones too, and end the thread."""
        with self._lock:
            self.closed = True
            self._idle.clear()
            children = list(self._all)
        for child in children:
            self.discard(child)
        self._starter.shutdown(wait=True)
