"""The process in which a user's function runs as a tool: `python -m workers.rollout.function_tool.child FD PARENT_PID`.

Protocol, one JSON object per line over the socket FD: the parent names the function, the child answers with its
description and schema or with why it cannot be used; then every request is answered by a status and a text. What the
function prints goes nowhere.
"""

from __future__ import annotations

import asyncio
import inspect
import json
from collections.abc import Callable
from typing import Any

from pydantic import Field, JsonValue

from policies.base.component import import_from_folder_of, load_object
from policies.base.errors import ConfigurationError, PawlError, RolloutError, boundary
from policies.base.records import Record, ToolCallStatus
from workers.isolation.child_process import begin_as_child, clean_text, line_of, storable
from workers.rollout.function_tool.signature import ArgumentProblemsError, FunctionSignature


class Hello(Record):
    """The first message: which function, and how much of its answer is read."""

    function: str
    max_characters: int


class Started(Record):
    """The answer to `Hello`: a description and a schema, or why there is none."""

    failed: str = ""
    description: str = ""
    parameters: dict[str, JsonValue] = Field(default_factory=dict)


class Request(Record):
    """One call."""

    id: int
    arguments: dict[str, JsonValue]


class Reply(Record):
    """The outcome of the call with this id."""

    id: int
    status: ToolCallStatus
    text: str


class _NoTextError(Exception):
    """The function returned what cannot be shown to a policy."""


def main() -> None:
    """Serve one function until the parent hangs up or dies."""
    connection = begin_as_child()
    with connection, connection.makefile("rb") as requests:
        hello = Hello.model_validate_json(requests.readline())
        try:
            with boundary(ConfigurationError, f"the function {hello.function!r} cannot be loaded"):
                function = _load(hello.function)
                signature = FunctionSignature(function, hello.function)
                started = Started(
                    description=signature.description, parameters=signature.parameters
                )
                opening = line_of(started)
        except PawlError as error:
            connection.sendall(line_of(Started(failed=storable(str(error)))))
            return
        connection.sendall(opening)
        for line in requests:
            request = Request.model_validate_json(line)
            status, text = _call(function, signature, request.arguments)
            # One character more than is read: the parent sees that there was more.
            cut = storable(text[: hello.max_characters + 1])
            connection.sendall(line_of(Reply(id=request.id, status=status, text=cut)))


def _load(reference: str) -> Callable[..., Any]:
    import_from_folder_of(reference)
    function = load_object(reference)
    if not callable(function) or inspect.isclass(function):
        raise ConfigurationError(f"{reference!r} is not a function")
    found: Callable[..., Any] = function
    return found


def _call(
    function: Callable[..., Any], signature: FunctionSignature, arguments: dict[str, JsonValue]
) -> tuple[ToolCallStatus, str]:
    try:
        values = signature.checked(arguments)
    except ArgumentProblemsError as error:
        return ToolCallStatus.BAD_ARGUMENTS, f"Error: {error}"
    try:
        with boundary(RolloutError, "Error"):
            result = function(**values)
            if inspect.iscoroutine(result):
                result = asyncio.run(result)
            return ToolCallStatus.OK, _text_of(result)
    except PawlError as error:
        if isinstance(error.__cause__, _NoTextError):
            return ToolCallStatus.BAD_OUTPUT, f"Error: {error.__cause__}"
        return ToolCallStatus.FAILED, clean_text(str(error))


def _text_of(result: object) -> str:
    if isinstance(result, str):
        return str(result)
    if isinstance(result, (bool, int, float, list, tuple, dict)):
        try:
            return json.dumps(result, allow_nan=False, ensure_ascii=False)
        except (TypeError, ValueError, RecursionError) as error:
            raise _NoTextError(
                f"the tool returned a {type(result).__name__} that is not JSON"
            ) from error
    said = "nothing" if result is None else f"{type(result).__name__}, not text"
    raise _NoTextError(f"the tool returned {said}")


if __name__ == "__main__":
    main()
