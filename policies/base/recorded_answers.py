"""Answers that a prompt's row brings, as chat messages: a text, a chat, or a list of either in each column."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from policies.base.errors import InputError, explain
from policies.base.records import Json, Message, Prompt


def answers_of(prompt: Prompt, columns: Sequence[str]) -> list[list[Message]]:
    """Return the recorded answers of a prompt, each as the messages that follow the prompt's.

    Raises:
        InputError: a column holds something else.
    """
    found: list[list[Message]] = []
    for column in columns:
        given: Json = prompt.metadata.get(column)
        if given is None or given == "" or given == []:
            continue
        is_one = isinstance(given, str) or (
            isinstance(given, list) and all(isinstance(item, dict) for item in given)
        )
        items = [given] if is_one else given
        if not isinstance(items, list):
            raise refused(prompt, [column], "neither a text nor a chat")
        found += [_messages(prompt, column, item) for item in items]
    return found


def problem_with(messages: Sequence[Message]) -> str | None:
    """Tell why these messages are no answer: they begin and end with the assistant, with others between; or None."""
    roles = [message.role for message in messages]
    if not roles or roles[0] != "assistant":
        return "it does not begin with an assistant message"
    if any(one == other == "assistant" for one, other in pairwise(roles)):
        return "two assistant messages follow each other"
    if roles[-1] != "assistant":
        return "it does not end with an assistant message"
    return None


def refused(prompt: Prompt, columns: Sequence[str], what: str) -> InputError:
    """Say in four parts why the answers of a prompt cannot be used."""
    return InputError(
        explain(
            f"the recorded answers of prompt {prompt.id!r} cannot be used: {what}",
            value=str({name: prompt.metadata.get(name) for name in columns})[:120],
            where="metadata of the prompt, as logged_answers and recorded_choice name it",
            fix="give a text, a chat that begins and ends with role assistant, or a list of these, and keep the column "
            "(prompts.train.columns={metadata: [...]})",
        )
    )


def _messages(prompt: Prompt, column: str, item: Json) -> list[Message]:
    if isinstance(item, str):
        return [Message(role="assistant", content=item)]
    if not isinstance(item, list):
        raise refused(prompt, [column], "neither a text nor a chat")
    try:
        messages = [Message.model_validate(each) for each in item]
    except ValueError as error:
        raise refused(prompt, [column], "not a list of {role, content} with texts") from error
    if any(m.tool_calls or m.reasoning_content for m in messages if m.role == "assistant"):
        raise refused(prompt, [column], "calls or thoughts stand outside the content")
    if tuple(messages[: len(prompt.messages)]) == prompt.messages:  # a whole chat
        messages = messages[len(prompt.messages) :]
    if problem := problem_with(messages):
        raise refused(prompt, [column], problem)
    return messages
