"""The call-format seam: how a policy writes a tool call, and how the answer is shown to it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

from policies.base.component import Component, Family
from policies.base.records import Json, Message
from workers.rollout.tool import ToolOutput


@dataclass(frozen=True)
class RequestedCall:
    """A call as the policy wrote it."""

    tool: str
    arguments: dict[str, Json] = field(default_factory=dict)


@dataclass(frozen=True)
class Parsed:
    """The request of a policy turn: calls, or nothing (a final answer), or a call that cannot be read."""

    calls: tuple[RequestedCall, ...] = ()
    problem: str | None = None
    """Why what looks like a call is none; told to the policy, which may try again."""


class CallFormat(Component):
    """Reads tool calls out of a policy turn and writes the observation. Stateless."""

    offers_schemas: ClassVar[bool] = False
    """Whether the tools' JSON schemas are given to the chat template (`tools=`)."""

    call_words: ClassVar[tuple[str, ...]] = ()
    """Of a format that offers schemas: texts that a policy must have read to write calls in it."""

    def __init__(self, config: Component.Config) -> None:
        self.config = config

    def parse(self, text: str) -> Parsed:
        """Return what the turn asks for. Total: any text gives an answer, none raises."""
        raise NotImplementedError

    def messages(self, results: Sequence[tuple[str, ToolOutput]]) -> tuple[Message, ...]:
        """The observation for these results (tool name, output), in the order of the calls; at least one message."""
        raise NotImplementedError


CALL_FORMATS = Family("call format", package="workers.rollout.call_formats", base=CallFormat)
