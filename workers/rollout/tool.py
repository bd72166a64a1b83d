"""The tool seam: arguments in, text out; whatever a tool does wrong is a status, never an exception."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import Field

from policies.component import Component, Family
from policies.records import Json, ToolCallStatus


@dataclass(frozen=True)
class ToolOutput:
    """What a call gave. `text` is what the policy will read, also when the call failed."""

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
        timeout_seconds: float = Field(default=10.0, gt=0)
        """Longest time of one call; after it the call is `timed_out` and the tool's process is killed."""
        max_output_characters: int = Field(default=2000, ge=1)
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


def wrap_function(reference: str) -> dict[str, Any]:
    """Settings of the `function` tool for a plain function named by `reference`."""
    return {"type": "function", "function": reference}


TOOLS = Family("tool", package="workers.rollout.tools", base=Tool, wrap_function=wrap_function)
