"""Finds chat templates that leave out the tools of a prompt or the calls in its history, which the policy must know."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from policies.base.errors import RolloutError, explain
from policies.base.records import Message


def check_shown(
    text: str, messages: Sequence[Message], tools: Sequence[Mapping[str, object]]
) -> None:
    """Refuse a rendered prompt in which a tool, or a call of the history, is not named.

    Args:
        text: what the template made of the messages and tools.
        messages: the prompt's messages.
        tools: JSON schemas that the prompt offers.

    Raises:
        RolloutError: the template does not show them.
    """
    called = [call.get("function") for message in messages for call in message.tool_calls]
    for what, key, functions in (
        ("tool calls of earlier turns", "tool_calls", called),
        ("tools", "columns.tools", [tool.get("function") for tool in tools]),
    ):
        for function in functions:
            name = function.get("name") if isinstance(function, Mapping) else None
            if isinstance(name, str) and name not in text:
                raise RolloutError(
                    explain(
                        f"the chat template does not show the {what}: the policy would not know of them",
                        value=name,
                        where=f"{key} of the prompts, and the template of policy.model",
                        fix="use a model whose template shows tools, or leave these rows out (prompts.*.columns.tools: "
                        "null offers no tools)",
                    )
                )
