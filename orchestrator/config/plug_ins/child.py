"""The process in which plug-ins are imported and asked: `python -m orchestrator.config.plug_ins.child FD PARENT_PID`.

It has no secrets in its environment, bounded memory, and is killed with all that it started. What a plug-in raises is
an answer; what ends or hangs this process is noticed by the driver, which knows what was imported last.
"""

from __future__ import annotations

import functools
import resource
from collections.abc import Callable
from typing import Any

from pydantic import JsonValue

from orchestrator.config.plug_ins import opened
from orchestrator.config.plug_ins.answering import ANSWERS, Memory
from orchestrator.config.plug_ins.messages import Answered, Asked
from orchestrator.config.plug_ins.watching import Importing
from policies.base.errors import PawlError
from workers.cluster.machine import this_machine
from workers.isolation.child_process import begin_as_child, clean_text, line_of, storable

_MOST_BYTES = 8 * 2**30
_LEAST_BYTES = 2**30


def main() -> None:
    """Answer until the driver hangs up or dies."""
    connection = begin_as_child()
    _bound_memory()
    opened.watch()
    send = connection.sendall  # before a plug-in can replace it
    memory = Memory()
    with connection, connection.makefile("rb") as questions:
        for line in questions:
            asked = Asked.model_validate_json(line)
            send(line_of(_answer(asked, memory, send)))


def _bound_memory() -> None:
    """Half of what is free now, within bounds: an import that fills memory raises MemoryError, and nobody else dies."""
    free = this_machine().available_bytes
    most = max(_LEAST_BYTES, min(_MOST_BYTES, free // 2))
    resource.setrlimit(resource.RLIMIT_DATA, (most, most))


def _answer(asked: Asked, memory: Memory, send: Callable[[bytes], None]) -> Answered:
    def tell(reference: str, loaded: bool) -> None:
        note = Answered(id=asked.id, loading="" if loaded else storable(reference), loaded=loaded)
        send(line_of(note))

    importing = Importing(tell)
    try:
        with importing.watching():
            answer = ANSWERS[asked.what](asked.body, importing, memory)
        return Answered(id=asked.id, body=_plain(answer))
    except PawlError as error:
        return Answered(id=asked.id, failed=_text(error), kind=type(error).__name__)
    except BaseException as error:  # KeyboardInterrupt of a plug-in too: nobody presses keys here
        return Answered(id=asked.id, failed=f"{type(error).__name__}: {_text(error)}")


def _text(error: BaseException) -> str:
    return clean_text(storable(str(error)))


@functools.singledispatch
def _plain(value: Any) -> Any:
    """`value` with texts that JSON can carry."""
    return value


@_plain.register
def _(value: str) -> JsonValue:
    return storable(value)


@_plain.register
def _(value: dict) -> JsonValue:  # type: ignore[type-arg]
    return {str(_plain(str(key))): _plain(inner) for key, inner in value.items()}


@_plain.register
def _(value: list) -> JsonValue:  # type: ignore[type-arg]
    return [_plain(inner) for inner in value]


if __name__ == "__main__":
    main()
