"""A Python interpreter for model-written code, in the sandbox; cells of one trajectory may share their variables."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from pydantic import Field

from policies.base.bounds import MAX_CHARACTERS
from policies.base.errors import SandboxUnavailableError
from policies.base.records import Json, ToolCallStatus
from policies.base.requirements import Requirements
from workers.rollout.tool import (
    BadArgumentsError,
    Tool,
    ToolOutput,
    ToolSession,
    text_argument,
    text_schema,
)
from workers.sandbox.settings import SandboxResult, SandboxSettings, SandboxStatus

if TYPE_CHECKING:
    from workers.sandbox.sandbox import Sandbox, SandboxSession

ARGUMENT = "code"
NO_OUTPUT = "(no output: use print)"

_STATUS: dict[SandboxStatus, ToolCallStatus] = {
    SandboxStatus.OK: ToolCallStatus.OK,
    SandboxStatus.RAISED: ToolCallStatus.FAILED,
    SandboxStatus.KILLED: ToolCallStatus.FAILED,
    SandboxStatus.MEMORY_LIMIT: ToolCallStatus.FAILED,
    SandboxStatus.CPU_LIMIT: ToolCallStatus.TIMED_OUT,
    SandboxStatus.WALL_LIMIT: ToolCallStatus.TIMED_OUT,
    SandboxStatus.OUTPUT_LIMIT: ToolCallStatus.FLOODED,
    SandboxStatus.BAD_REPLY: ToolCallStatus.BAD_OUTPUT,
    SandboxStatus.START_FAILED: ToolCallStatus.UNAVAILABLE,
}
_SAID: dict[SandboxStatus, str] = {
    SandboxStatus.KILLED: "Error: the program crashed",
    SandboxStatus.MEMORY_LIMIT: "Error: out of memory",
    SandboxStatus.CPU_LIMIT: "Error: the program took too long",
    SandboxStatus.WALL_LIMIT: "Error: the program took too long",
    SandboxStatus.OUTPUT_LIMIT: "Error: too much output",
    SandboxStatus.BAD_REPLY: "Error: the output cannot be read",
}


_AFRESH = "The interpreter was started afresh"
"""So a session begins its `error` when a limit ended the cell before and with it all variables."""


class Python(Tool):
    """Runs code and answers with what it printed, and with the end of the traceback when it raised."""

    class Config(Tool.Config):
        """Settings of `python`."""

        stateful: bool = True
        """Variables live from one call of a trajectory to its next, as in a notebook; else each call starts afresh."""
        traceback_lines: int = Field(default=1, ge=1, le=MAX_CHARACTERS)
        """How many of the last lines of a traceback the policy reads."""
        sandbox: SandboxSettings = SandboxSettings()
        """Limits and containment. Of its `wall_seconds` and the tool's `timeout_seconds` the smaller one counts."""

        def requires(self) -> Requirements:
            """The sandbox that it runs code in."""
            box = self.sandbox.model_dump(mode="json")
            return super().requires() + Requirements(sandbox=box)

    config: Config

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self._opened: Sandbox | None = None
        self._closed = False

    @property
    def sandbox(self) -> Sandbox:
        """Made when first asked for: building the tool from its settings starts nothing.

        Raises:
            SandboxUnavailableError: the tool was closed.
        """
        if self._closed:
            raise SandboxUnavailableError("the tool was closed")
        if self._opened is None:
            from workers.sandbox.sandbox import Sandbox

            wall = min(self.config.timeout_seconds, self.config.sandbox.wall_seconds)
            self._opened = Sandbox(self.config.sandbox.model_copy(update={"wall_seconds": wall}))
        return self._opened

    def prepare(self) -> None:
        self.sandbox.prepare()

    def schema(self) -> dict[str, Any]:
        return text_schema(
            self.config.called,
            "Runs Python code and returns what it prints.",
            ARGUMENT,
            "Python code; print what you want to see",
        )

    def open(self, seed: int) -> ToolSession:
        return _PythonSession(self)

    def close(self) -> None:
        self._closed = True
        if self._opened is not None:
            self._opened.close()

    def told(self, result: SandboxResult) -> ToolOutput:
        """Return what the policy reads of `result`, and the status of the call."""
        status = _STATUS[result.status]
        if result.status is SandboxStatus.START_FAILED:
            return self.output(f"Error: {result.error}", status)
        lines = result.error.strip().splitlines()
        note = [line for line in lines[:1] if line.startswith(_AFRESH)]
        raised = "\n".join(lines[len(note) :][-self.config.traceback_lines :])
        printed = result.stdout.rstrip("\n")
        if result.status is SandboxStatus.OK:
            return self.output("\n".join([*note, printed or NO_OUTPUT]), status)
        said = _SAID.get(result.status) or raised or "Error: the program failed"
        room = max(self.config.max_output_characters - len("\n".join([*note, "", said])), 0)
        return self.output("\n".join(filter(None, [*note, printed[:room], said])), status)


class _PythonSession(ToolSession):
    def __init__(self, tool: Python) -> None:
        self._tool = tool
        self._cells: SandboxSession | None = (
            None  # opened by the first call: many attempts make none
        )
        self._closed = False
        self._lock = threading.Lock()  # close may come while a call is still running

    def call(self, arguments: Mapping[str, Json]) -> ToolOutput:
        try:
            code = text_argument(arguments, ARGUMENT)
            return self._tool.told(self._run(code))
        except BadArgumentsError as error:
            return self._tool.output(f"Error: {error}", ToolCallStatus.BAD_ARGUMENTS)
        except SandboxUnavailableError as error:
            return self._tool.output(f"Error: {error}", ToolCallStatus.UNAVAILABLE)

    def _run(self, code: str) -> SandboxResult:
        with self._lock:
            if self._closed:
                raise SandboxUnavailableError("the session was closed")
            if self._tool.config.stateful and self._cells is None:
                self._cells = self._tool.sandbox.open_session()
            cells = self._cells
        return self._tool.sandbox.run(code) if cells is None else cells.run(code)

    def close(self) -> None:
        with self._lock:
            self._closed = True
            cells, self._cells = self._cells, None
        if cells is not None:
            cells.close()
