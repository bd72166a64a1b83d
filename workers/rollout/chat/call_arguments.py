"""Arguments of earlier tool calls in the form that a chat template reads: a JSON object, or JSON as text.

Either is common in files; the wrong one is shown as Python writes it, or quoted twice.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from policies.base.errors import RolloutError

Messages = list[dict[str, object]]
_KEY = "pawlkey"


def wants_text(render: Callable[[Messages], str]) -> bool:
    """Tell whether the template that `render` applies reads arguments as text, found by trying both."""
    as_object, as_text = (_shown(render, form) for form in ({_KEY: 1}, json.dumps({_KEY: 1})))
    if f"'{_KEY}'" not in as_object and _KEY in as_object:
        return False
    return f'"{_KEY}"' in as_text and f'\\"{_KEY}' not in as_text


def with_arguments(messages: Messages, *, as_text: bool) -> Messages:
    """The messages with the arguments of their calls in one form; what is no JSON object stays as it is."""
    return [
        {**m, "tool_calls": [_call(call, as_text) for call in calls]}
        if isinstance(calls := m.get("tool_calls"), list | tuple) and calls
        else m
        for m in messages
    ]


def _call(call: Any, as_text: bool) -> Any:
    if not isinstance(call, dict):
        return call
    if isinstance(call.get("function"), dict):
        return {**call, "function": _call(call["function"], as_text)}
    if "arguments" not in call:
        return call
    given = call["arguments"]
    if as_text and not isinstance(given, str):
        return {**call, "arguments": json.dumps(given, ensure_ascii=False)}
    if not as_text and isinstance(given, str):
        try:
            parsed = json.loads(given)
        except ValueError:
            return call
        return {**call, "arguments": parsed} if isinstance(parsed, dict) else call
    return call


def _shown(render: Callable[[Messages], str], arguments: object) -> str:
    """Return what a template makes of a call with these arguments; empty when it refuses it."""
    function = {"name": "pawl", "arguments": arguments}
    call = {"type": "function", "id": "pawl00001", "function": function}
    try:
        return render(
            [
                {"role": "user", "content": "pawl-question"},
                {"role": "assistant", "content": "", "tool_calls": [call]},
            ]
        )
    except RolloutError:
        return ""
