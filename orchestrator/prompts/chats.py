"""From the chat of a row to messages: OpenAI's and ShareGPT's keys, text parts, tool calls. Nothing is lost in silence.

A key that no template would be shown is refused by name, unless `ignore_keys` lists it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from orchestrator.prompts.row_values import (
    RowError,
    as_json,
    as_text,
    parsed,
    shown,
    without_nulls,
)
from policies.base.records import Json, Message

ROLES = ("system", "user", "assistant", "tool")
_ROLES = {role: role for role in ROLES} | {
    # What hosted models call the system's voice, and what ShareGPT and its kin call the four.
    "developer": "system",
    "human": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bot": "assistant",
    "model": "assistant",
    "function_call": "assistant",
    "function": "tool",
    "observation": "tool",
    "function_response": "tool",
    "tool_response": "tool",
}
_CARRIED = frozenset({"name", "reasoning_content", "tool_calls", "tool_call_id"})
_READ = frozenset({"role", "content", "from", "value", "function_call"}) | _CARRIED
_TEXT_PARTS = ("text", "input_text", "output_text")


def is_chat(value: Any) -> bool:
    """Tell whether a value looks like a list of messages, in either kind of keys."""
    return (
        isinstance(value, list)
        and bool(value)
        and all(isinstance(m, Mapping) and ("role" in m or "from" in m) for m in value)
    )


def read_chat(
    value: Any, column: str, *, is_padded: bool = False, ignored: Sequence[str] = ()
) -> tuple[Message, ...]:
    """The messages of a chat, the last one whoever it is by.

    Args:
        value: the list, as the row holds it.
        column: where it stands, for messages.
        is_padded: nulls in tool calls may stand for absent keys.
        ignored: keys of messages that may be lost.

    Raises:
        RowError: it is no chat, or holds something that would be lost.
    """
    if not isinstance(value, list) or not value:
        raise RowError(
            f"{column!r} must be a list of messages that is not empty, got {shown(value)}"
        )
    messages: list[Message] = []
    for index, item in enumerate(value):
        where = f"{column}[{index}]"
        if not isinstance(item, Mapping):
            raise RowError(f"{where} must be an object with role and content, got {shown(item)}")
        message = _message(item, where, is_padded, ignored)
        if message.role == "system" and messages and messages[-1].role == "system":
            # A developer's message behind the system's: templates take one of them.
            joined = f"{messages[-1].content}\n\n{message.content}"
            messages[-1] = messages[-1].model_copy(update={"content": joined})
        else:
            messages.append(message)
    if not any(message.role == "user" for message in messages):
        raise RowError(f"{column!r} has no message of the user")
    return tuple(messages)


def read_tools(value: Any, column: str, *, is_padded: bool = False) -> tuple[dict[str, Json], ...]:
    """Schemas of the tools offered, each as `{"type": "function", "function": {...}}`; a list or its JSON text.

    Raises:
        RowError: it is something else.
    """
    value = parsed(value, column) if value else []
    if not isinstance(value, list):
        raise RowError(f"{column!r} must be a list of tool schemas, got {shown(value)}")
    found: list[dict[str, Json]] = []
    for index, item in enumerate(value):
        schema = as_json(without_nulls(item) if is_padded else item, f"{column}[{index}]")
        if isinstance(schema, dict) and "function" not in schema and "name" in schema:
            schema = {"type": "function", "function": schema}
        function = schema.get("function") if isinstance(schema, dict) else None
        if (
            not isinstance(schema, dict)
            or not isinstance(function, dict)
            or not function.get("name")
        ):
            raise RowError(
                f"{column}[{index}] must be a tool's JSON schema with a name, got {shown(item)}"
            )
        found.append({"type": "function", **schema})
    return tuple(found)


def looks_like_tools(value: Any) -> bool:
    """Tell whether a column that is called `tools` holds schemas, and not, say, words."""
    try:
        return bool(read_tools(value, "tools"))
    except RowError:
        return False


def _message(
    item: Mapping[str, Any], where: str, is_padded: bool, ignored: Sequence[str]
) -> Message:
    said_by, content_key = ("from", "value") if "role" not in item else ("role", "content")
    given = item.get(said_by)
    role = _ROLES.get(given) if isinstance(given, str) else None
    if role is None:
        raise RowError(f"{where} has the unknown role {given!r}; known: {', '.join(_ROLES)}")
    lost = [
        key
        for key, value in item.items()
        if key not in _READ and key not in ignored and value not in (None, "", [], {})
    ]
    if lost:
        raise RowError(
            f"{where}.{lost[0]} would be lost: chat templates are shown role, content, "
            f"{', '.join(sorted(_CARRIED))}. If it may be, set prompts.*.ignore_keys: [{', '.join(lost)}]"
        )
    content = item.get(content_key)
    calls = _calls(item, where, is_padded)
    if given == "function_call":
        calls, content = _call_from_text(content, f"{where}.{content_key}"), ""
    if calls and role != "assistant":
        raise RowError(f"{where} calls tools, but only the assistant's messages can")
    return Message(
        role=role,
        content=_content(
            content, f"{where}.{content_key}", ignored, empty=bool(calls) or role == "tool"
        ),
        name=_optional(item.get("name"), f"{where}.name"),
        reasoning_content=_optional(item.get("reasoning_content"), f"{where}.reasoning_content"),
        tool_calls=calls,
        tool_call_id=_optional(item.get("tool_call_id"), f"{where}.tool_call_id"),
    )


def _optional(value: Any, what: str) -> str | None:
    return None if value is None or value == "" else as_text(value, what)


def _content(value: Any, what: str, ignored: Sequence[str], *, empty: bool) -> str:
    """Text, or the text of all parts."""
    if empty and value is None:
        return ""
    if (
        isinstance(value, list)
        and value
        and all(isinstance(part, (Mapping, str)) for part in value)
    ):
        value = "\n".join(_part(part, f"{what}[{i}]", ignored) for i, part in enumerate(value))
    return as_text(value, what, empty=empty)


def _part(part: Mapping[str, Any] | str, what: str, ignored: Sequence[str]) -> str:
    if isinstance(part, str):
        return part
    kind = part.get("type", "text" if "text" in part else None)
    if kind not in _TEXT_PARTS:
        raise RowError(
            f"{what} is of type {kind!r}, and the policy would be shown text alone; leave such rows out"
        )
    lost = [
        key
        for key, value in part.items()
        if key not in ("type", "text", *ignored) and value not in (None, "", [], {})
    ]
    if lost:
        raise RowError(
            f"{what}.{lost[0]} would be lost. If it may be, set prompts.*.ignore_keys: [{', '.join(lost)}]"
        )
    return as_text(part.get("text"), f"{what}.text", empty=True)


def _calls(item: Mapping[str, Any], where: str, is_padded: bool) -> tuple[dict[str, Json], ...]:
    given = item.get("tool_calls") or []
    if not isinstance(given, list):
        given = parsed(given, f"{where}.tool_calls")
    if not isinstance(given, list):
        raise RowError(f"{where}.tool_calls must be a list, got {shown(given)}")
    if item.get("function_call"):
        given = [*given, {"function": item["function_call"]}]
    return tuple(_call(call, f"{where}.tool_calls[{i}]", is_padded) for i, call in enumerate(given))


def _call(call: Any, where: str, is_padded: bool) -> dict[str, Json]:
    """One call, its arguments as an object: templates write them as JSON themselves."""
    if isinstance(call, Mapping) and "function" not in call and "name" in call:
        named = {key: call[key] for key in ("name", "arguments", "parameters") if key in call}
        call = {**{k: v for k, v in call.items() if k not in named}, "function": named}
    function = call.get("function") if isinstance(call, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
        raise RowError(f"{where} must be an object with function.name, got {shown(call)}")
    written = function.get("arguments") or function.get("parameters") or {}
    arguments = parsed(written, f"{where}.function.arguments")
    if not isinstance(arguments, Mapping):
        raise RowError(f"{where}.function.arguments must be an object, got {shown(arguments)}")
    if is_padded:
        arguments = without_nulls(arguments)
    rest = {k: v for k, v in call.items() if v is not None and k != "function"}
    kept = {k: v for k, v in function.items() if v is not None and k != "parameters"}
    made = {"type": "function", **rest, "function": {**kept, "arguments": dict(arguments)}}
    plain = as_json(made, where)
    assert isinstance(plain, dict)
    return plain


def _call_from_text(value: Any, what: str) -> tuple[dict[str, Json], ...]:
    """Calls that ShareGPT's `function_call` turns write as JSON text."""
    calls = parsed(value, what)
    return tuple(
        _call(call, f"{what}[{i}]", is_padded=False)
        for i, call in enumerate(calls if isinstance(calls, list) else [calls])
    )


def shown_to_model(message: Message) -> list[Any]:
    """Role and content, and whatever else a message has: what tells it from others."""
    rest = message.model_dump(mode="json", exclude={"role", "content"})
    return [message.role, message.content, *([rest] if rest else [])]
