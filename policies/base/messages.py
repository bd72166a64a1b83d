"""The base of all records, and the chat message, which is the smallest of them."""

from __future__ import annotations

import json
from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict, Field, JsonValue, field_validator

Json = JsonValue


class Record(BaseModel):
    """Base of all records."""

    kind_name: ClassVar[str] = ""
    """Name under which the marker of a file remembers this type; empty where the file's folder says it."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Message(Record):
    """One chat message. Example: `Message(role="user", content="What is 7 times 8?")`.

    What only some messages have is written only where there is any: to templates that ask whether a key is there, and
    to digests, the others are a role and a content.
    """

    role: str
    content: str
    """Text; empty where an assistant's message only calls tools."""
    name: str | None = Field(default=None, exclude_if=lambda found: found is None)
    """Who speaks, or of a tool's answer the tool."""
    reasoning_content: str | None = Field(default=None, exclude_if=lambda found: found is None)
    """An assistant's thoughts, for templates that show them apart from the content."""
    tool_calls: tuple[dict[str, Json], ...] = Field(default=(), exclude_if=lambda found: not found)
    """An assistant's calls, in the chat template's form: `{"type": "function", "function": {"name", "arguments"}}`."""
    tool_call_id: str | None = Field(default=None, exclude_if=lambda found: found is None)
    """Of a tool's answer: the `id` of the call that it answers."""

    @field_validator("tool_calls", mode="before")
    @classmethod
    def _none_is_empty(cls, found: Any) -> Any:
        return () if found is None else found  # a file without the column, or a row without one

    @property
    def full_text(self) -> str:
        """Thoughts, content and tool calls in one text: for judges, for people, and for counting."""
        calls = [json.dumps(call, ensure_ascii=False) for call in self.tool_calls]
        return "\n".join(part for part in (self.reasoning_content, self.content, *calls) if part)
