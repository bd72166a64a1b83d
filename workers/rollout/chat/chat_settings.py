"""Settings that a run gives to its chat template: arguments, the date, and what becomes of what it does not know."""

from __future__ import annotations

from datetime import date
from typing import Literal

from pydantic import Field

from policies.base.records import Json, Message, Record

TemplateRoles = Literal["as_given", "user_only"]
TemplateTools = Literal["template", "text"]

RESERVED = frozenset(
    {
        *("messages", "conversation", "conversations", "tools", "documents", "chat_template"),
        *("add_generation_prompt", "continue_final_message", "tokenize", "padding", "truncation"),
        *("max_length", "return_tensors", "return_dict", "return_assistant_tokens_mask"),
        *("tokenizer_kwargs", "strftime_now", "self"),
    }
)
"""Names that the renderer itself takes: no arguments of a template."""

_CALL = '<tool_call>\n{"name": <name>, "arguments": <arguments as a JSON object>}\n</tool_call>'


class ChatSettings(Record):
    """Settings for writing conversations for a model. Example: `ChatSettings(date="2026-11-30")`.

    The same for everything that a run samples, from its first day to its last.
    """

    template_arguments: dict[str, Json] = Field(default_factory=dict)
    """Variables for the template, e.g. `{"enable_thinking": False}`."""
    date: str = ""
    """The day that templates are told, YYYY-MM-DD; empty takes the day on which the format is loaded."""
    date_is_given: bool = False
    """The user named the day: told also to templates that have a fixed day of their own."""
    bos: bool = False
    """Begin with the tokenizer's BOS token where the tokenizer would add it and the template writes none."""
    roles: TemplateRoles = "as_given"
    """With `user_only`, all that is not the policy's is shown as user messages, one between two policy turns."""
    tools: TemplateTools = "template"
    """Who tells the policy of its tools: the template (`tools=`), or a text in the system message."""


def refused_arguments(arguments: dict[str, Json]) -> str | None:
    """Tell why these cannot be arguments of a template; None when they can."""
    taken = sorted(set(arguments) & RESERVED)
    if taken:
        return f"{', '.join(taken)} cannot be set: pawl gives it itself"
    strange = sorted(name for name in arguments if not name.isidentifier())
    if strange:
        return f"{strange[0]!r} is no name of a template's variable"
    return None


def checked_date(text: str) -> str:
    """`text` when it names a day.

    Raises:
        ValueError: it does not.
    """
    if len(text) != len("2026-11-30"):
        raise ValueError(f"{text!r} is no date. Fix: write it as YYYY-MM-DD, e.g. 2026-11-30")
    try:
        return date.fromisoformat(text).isoformat()
    except ValueError as error:
        raise ValueError(f"{text!r} is no date ({error}). Fix: write it as YYYY-MM-DD") from error


def with_tools_as_text(
    messages: list[dict[str, object]], tools: list[dict[str, object]], lines: list[str]
) -> list[dict[str, object]]:
    """The messages with the tools described in the system message, which is made when there is none.

    Args:
        messages: role and content of each.
        tools: their JSON schemas, only counted here.
        lines: the schemas as JSON, one line each.
    """
    if not tools:
        return messages
    told = (
        "# Tools\n\nYou may call these functions, described in JSON:\n<tools>\n"
        + "\n".join(lines)
        + f"\n</tools>\n\nTo call one, write:\n{_CALL}"
    )
    first = messages[0] if messages else None
    if first is not None and first["role"] == "system":
        return [{**first, "content": f"{first['content']}\n\n{told}"}, *messages[1:]]
    return [{"role": "system", "content": told}, *messages]


def as_user_only(messages: list[dict[str, object]]) -> list[dict[str, object]]:
    """The messages with user and assistant in turn: neighbours that are not the policy's become one user message."""
    found: list[dict[str, object]] = []
    for message in messages:
        if message["role"] == "assistant":
            found.append(message)
        elif found and found[-1]["role"] == "user":
            found[-1] = {
                "role": "user",
                "content": f"{found[-1]['content']}\n\n{message['content']}",
            }
        else:
            found.append({"role": "user", "content": message["content"]})
    return found


def in_parts(messages: list[dict[str, object]]) -> list[dict[str, object]]:
    """The messages with their texts as lists of parts, as templates of models that also see pictures read them."""
    return [{**m, "content": [{"type": "text", "text": m["content"]}]} for m in messages]


def probe(role: str, word: str) -> Message:
    """A message of a made-up conversation. Example: `probe("user", "pawl asks")`."""
    return Message(role=role, content=word)
