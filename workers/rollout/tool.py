"""The tool seam: arguments in, text out; whatever a tool does wrong is a status, never an exception."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import Field

from policies.base.bounds import MAX_CHARACTERS, MAX_SECONDS
from policies.base.component import Component, Family
from policies.base.records import Json, ToolCallStatus

_CUT = " [cut]"


@dataclass(frozen=True)
class ToolOutput:
    """The output of a call. `text` is what the policy will read, also when the call failed."""

    text: str
    status: ToolCallStatus = ToolCallStatus.OK


class ToolSession:
    """A tool in the hands of one trajectory; state, if the tool keeps any, lives and dies with it."""

    def call(self, arguments: Mapping[str, Json]) -> ToolOutput:
        """Run the tool; returns within `timeout_seconds` of its config plus a little, whatever the tool does.

        Called from worker threads, by one thread at a time for one session.
        """
        raise NotImplementedError

    def close(self) -> None:
        """Give back what the session holds; called once, also after a failure."""


class Tool(Component):
    """Something that a policy may call. One object per rollout worker; a session per trajectory."""

    class Config(Component.Config):
        """Settings that every tool has."""

        name: str | None = None
        """Name by which the policy calls it; the type by default."""
        timeout_seconds: float = Field(default=10.0, gt=0, le=MAX_SECONDS)
        """Longest time of one call; after it the call is `timed_out` and the tool's process is killed."""
        max_output_characters: int = Field(default=2000, ge=1, le=MAX_CHARACTERS)
        """Longest observation; the rest is cut and the call is `flooded`."""

        @property
        def called(self) -> str:
            return self.name or self.type

    config: Config

    def __init__(self, config: Config) -> None:
        self.config = config

    def prepare(self) -> None:
        """Make sure that the tool can run here; called once before the first session.

        Raises:
            SandboxUnavailableError: it runs code, and nothing here can contain it.
            ConfigurationError: its settings cannot work on this machine.
        """

    def schema(self) -> dict[str, Any]:
        """`{"type": "function", "function": {"name", "description", "parameters"}}`, parameters as JSON Schema."""
        raise NotImplementedError

    def open(self, seed: int) -> ToolSession:
        """A fresh session; `seed` is for tools with chance in them."""
        raise NotImplementedError

    def close(self) -> None:
        """Give back what the tool holds."""

    def output(self, text: str, status: ToolCallStatus = ToolCallStatus.OK) -> ToolOutput:
        """`text` cut at `max_output_characters`; a call that would have been `ok` is `flooded` then."""
        limit = self.config.max_output_characters
        if len(text) <= limit:
            return ToolOutput(text, status)
        mark = _CUT if limit > 2 * len(_CUT) else ""
        cut = ToolCallStatus.FLOODED if status is ToolCallStatus.OK else status
        return ToolOutput(text[: limit - len(mark)] + mark, cut)


class BadArgumentsError(Exception):
    """The arguments of a call do not fit the tool's schema; the text is told to the policy."""


def text_argument(arguments: Mapping[str, Json], name: str) -> str:
    """The only argument of a tool that takes one text.

    Raises:
        BadArgumentsError: it is missing, is no text, or is not alone.
    """
    unknown = sorted(set(arguments) - {name})
    if unknown:
        shown = ", ".join(repr(key[:40]) for key in unknown[:3])
        raise BadArgumentsError(f"unknown argument {shown}: give only {name!r}, a text")
    if name not in arguments:
        raise BadArgumentsError(f"the argument {name!r}, a text, is missing")
    value = arguments[name]
    if not isinstance(value, str):
        raise BadArgumentsError(f"the argument {name!r} must be a text, not {json_type(value)}")
    if any("\ud800" <= character <= "\udfff" for character in value):
        raise BadArgumentsError(f"the argument {name!r} has half of a surrogate pair")
    return value


def json_type(value: Json) -> str:
    """Return what JSON calls the type of `value`. Example: `json_type(None)` is `"null"`."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "a boolean"
    if isinstance(value, (int, float)):
        return "a number"
    if isinstance(value, str):
        return "a text"
    return "a list" if isinstance(value, list) else "an object"


def text_schema(name: str, description: str, argument: str, meaning: str) -> dict[str, Any]:
    """Schema of a tool that takes one text."""
    parameters = {
        "type": "object",
        "properties": {argument: {"type": "string", "description": meaning}},
        "required": [argument],
        "additionalProperties": False,
    }
    function = {"name": name, "description": description, "parameters": parameters}
    return {"type": "function", "function": function}


def wrap_function(reference: str) -> dict[str, Any]:
    """Settings of the `function` tool for a plain function named by `reference`."""
    return {"type": "function", "function": reference}


TOOLS = Family("tool", package="workers.rollout.tools", base=Tool, wrap_function=wrap_function)
