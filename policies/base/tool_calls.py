"""Records of tool calls: which tool was called, and what became of the call."""

from __future__ import annotations

from enum import StrEnum

from policies.base.messages import Record


class ToolCallStatus(StrEnum):
    """The outcome of a tool call; everything but `ok` and `unavailable` is told to the policy as an observation."""

    OK = "ok"
    FAILED = "failed"
    """The tool, or the code it ran, raised."""
    TIMED_OUT = "timed_out"
    FLOODED = "flooded"
    """It wrote more than its limit; the observation is cut."""
    UNPARSEABLE = "unparseable"
    """What the policy wrote is no call."""
    UNKNOWN_TOOL = "unknown_tool"
    BAD_ARGUMENTS = "bad_arguments"
    BAD_OUTPUT = "bad_output"
    """It returned something that is no text, e.g. bytes."""
    UNAVAILABLE = "unavailable"
    """Our fault (no sandbox, a dead worker): the trajectory is an error, never a wrong answer."""


class ToolCall(Record):
    """One call of one tool, as it ended. Example: `ToolCall(tool="python", status="ok")`."""

    tool: str
    status: ToolCallStatus
