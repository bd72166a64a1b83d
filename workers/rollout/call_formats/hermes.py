"""JSON calls in tags, as Hermes and Qwen models write them; several in one turn are possible.

    <tool_call>
    {"name": "calculator", "arguments": {"expression": "57 * 83 + 6"}}
    </tool_call>

The chat template tells the model of the tools (`tools=`) and, with role `tool`, wraps the answers in its own tags.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, ClassVar, Literal

from pydantic import Field

from policies.base.bounds import MAX_COUNT
from policies.base.component import Component
from policies.base.records import Json, Message
from workers.rollout.call_format import CallFormat, Parsed, RequestedCall
from workers.rollout.tool import ToolOutput, json_type

OPEN, CLOSE = "<tool_call>", "</tool_call>"
_WANTED = f'Write {OPEN}{{"name": ..., "arguments": {{...}}}}{CLOSE}.'
_BLANK = " \t\r\n"
_MAX_DEPTH = 32
_MAX_DIGITS = 400


class _UnreadableError(Exception):
    """The turn has something like a call that is none; the text says why."""


class Hermes(CallFormat):
    """Reads calls in `<tool_call>` tags. Reading takes time linear in the text."""

    offers_schemas: ClassVar[bool] = True
    call_words: ClassVar[tuple[str, ...]] = (OPEN, '"arguments"')

    class Config(Component.Config):
        """Settings of `hermes`."""

        observation_role: Literal["tool", "user"] = "tool"
        """Role of the messages with the answers: `tool`, one message for each call, where the chat template has that
        role; `user`, one message with all answers in `<tool_response>` tags, where it has not."""
        max_calls: int = Field(default=8, ge=1, le=MAX_COUNT)
        """Most calls in one turn; more are a problem that the policy is told of."""

    config: Config

    def parse(self, text: str) -> Parsed:
        try:
            return Parsed(tuple(self._calls(text)))
        except _UnreadableError as error:
            return Parsed(problem=f"{error}. {_WANTED}")

    def messages(self, results: Sequence[tuple[str, ToolOutput]]) -> tuple[Message, ...]:
        if self.config.observation_role == "tool":
            return tuple(Message(role="tool", content=output.text) for _, output in results)
        answers = (f"<tool_response>\n{output.text}\n</tool_response>" for _, output in results)
        return (Message(role="user", content="\n".join(answers)),)

    def _calls(self, text: str) -> list[RequestedCall]:
        calls: list[RequestedCall] = []
        position = 0
        while (start := text.find(OPEN, position)) >= 0:
            self._check_no_close(text, position, start)
            if len(calls) == self.config.max_calls:
                raise _UnreadableError(f"more than {self.config.max_calls} calls in one turn")
            value, position = _read_json(text, start + len(OPEN))
            position = _skip_blank(text, position)
            if not text.startswith(CLOSE, position):
                raise _UnreadableError(f"the call does not end with {CLOSE}")
            position += len(CLOSE)
            calls.append(_call_of(value))
        self._check_no_close(text, position, len(text))
        return calls

    def _check_no_close(self, text: str, start: int, end: int) -> None:
        if text.find(CLOSE, start, end) >= 0:
            raise _UnreadableError(f"{CLOSE} without {OPEN}")


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


def _finite(text: str) -> float:
    value = float(text)
    if value in (float("inf"), float("-inf")):
        raise ValueError(f"{text[:40]} is too large")
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a key comes twice")
    return found


def _whole(text: str) -> int:
    if len(text) > _MAX_DIGITS:
        raise ValueError(f"a number of {len(text)} digits")
    return int(text)


_DECODER = json.JSONDecoder(
    parse_constant=_refuse_constant,
    parse_float=_finite,
    parse_int=_whole,
    object_pairs_hook=_unique,
)


def _read_json(text: str, start: int) -> tuple[Any, int]:
    start = _skip_blank(text, start)
    try:
        value, end = _DECODER.raw_decode(text, start)
    except json.JSONDecodeError as error:
        raise _UnreadableError(
            f"the call is not JSON: {error.msg} at character {error.pos - start + 1}"
        ) from None
    except RecursionError:
        raise _UnreadableError("the call is not JSON: nested too deep") from None
    except ValueError as error:
        raise _UnreadableError(f"the call is not JSON: {str(error)[:100]}") from None
    return value, end


def _skip_blank(text: str, position: int) -> int:
    while position < len(text) and text[position] in _BLANK:
        position += 1
    return position


def _call_of(value: Any) -> RequestedCall:
    if not isinstance(value, dict):
        raise _UnreadableError(f"the call must be a JSON object, not {json_type(value)}")
    unknown = sorted(set(value) - {"name", "arguments"})
    if unknown:
        raise _UnreadableError(f"the call has an unknown key {_shown(unknown[0])}")
    name = value.get("name")
    if not isinstance(name, str) or not name:
        raise _UnreadableError('the call needs a "name", a text')
    arguments = value.get("arguments", {})
    if not isinstance(arguments, dict):
        raise _UnreadableError(f'"arguments" must be an object, not {json_type(arguments)}')
    if not _is_plain(value):
        raise _UnreadableError(
            f"the call has half of a surrogate pair, or is nested deeper than {_MAX_DEPTH}"
        )
    return RequestedCall(name, arguments)


def _shown(key: str) -> str:
    return ascii(key[:40])


def _is_plain(value: Json, depth: int = 0) -> bool:
    """Tell whether records can hold `value`: texts that are Unicode, and no depth that readers of JSON give up at."""
    if isinstance(value, str):
        return not any("\ud800" <= character <= "\udfff" for character in value)
    if depth == _MAX_DEPTH:
        return not isinstance(value, (list, dict))
    if isinstance(value, list):
        return all(_is_plain(item, depth + 1) for item in value)
    if isinstance(value, dict):
        return all(_is_plain(k) and _is_plain(v, depth + 1) for k, v in value.items())
    return True
