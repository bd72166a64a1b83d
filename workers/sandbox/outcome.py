"""From bytes and exit codes to typed outcomes. Everything read here was written by untrusted code."""

from __future__ import annotations

import json
import math
import signal
from collections.abc import Sequence
from typing import Any, NoReturn

from policies.base.records import Json
from workers.sandbox.raw_result import Raw
from workers.sandbox.settings import (
    CallResult,
    SandboxBackend,
    SandboxResult,
    SandboxSettings,
    SandboxStatus,
)

ERROR_CHARACTERS = 2000
ERROR_LINES = 20
MAX_DEPTH = 300
_SHELL_SIGNAL = 128
"""bwrap reports that its child died of a signal as this plus the signal's number."""


def result_of(raw: Raw, backend: SandboxBackend, settings: SandboxSettings) -> SandboxResult:
    """Tell how a process that ended, or was ended, ended."""
    text = raw.stderr.decode("utf-8", "replace")
    status, why = _status(raw, backend, settings, text)
    error = "" if status is SandboxStatus.OK else f"{last_lines(text)}\n{why}".strip()
    return SandboxResult(
        status=status,
        stdout=_cut(raw, settings),
        error=error,
        wall_seconds=raw.wall_seconds,
        backend=backend,
    )


def _cut(raw: Raw, settings: SandboxSettings) -> str:
    return raw.stdout[: settings.output_kb * 1024].decode("utf-8", "replace")


def _status(
    raw: Raw, backend: SandboxBackend, settings: SandboxSettings, stderr: str
) -> tuple[SandboxStatus, str]:
    if raw.ending == "wall":
        return SandboxStatus.WALL_LIMIT, f"stopped after {settings.wall_seconds:g} s"
    if raw.ending == "cpu":
        return SandboxStatus.CPU_LIMIT, f"used {settings.cpu_seconds:g} s of processor time"
    if raw.ending == "files":
        return SandboxStatus.MEMORY_LIMIT, f"made more than {settings.max_files} files"
    if raw.ending == "flood":
        return SandboxStatus.OUTPUT_LIMIT, f"wrote more than {settings.output_kb} kB"
    if raw.ending == "threads":
        return SandboxStatus.KILLED, f"had more than {settings.max_threads} threads"
    code = raw.exit_code
    assert code is not None
    if code > _SHELL_SIGNAL and backend == "bwrap":
        code = _SHELL_SIGNAL - code
    if code == 0:
        return SandboxStatus.OK, ""
    if code > 0:
        lines = stderr.strip().splitlines()
        if lines and lines[-1].startswith("MemoryError"):
            return SandboxStatus.MEMORY_LIMIT, ""
        return SandboxStatus.RAISED, "" if lines else f"exit code {code}"
    by_kernel = -code in (signal.SIGKILL, signal.SIGXCPU)
    # bwrap does not pass on what its child used; a thread cannot use more than the wall clock shows.
    used = raw.wall_seconds if backend == "bwrap" else raw.cpu_seconds
    if by_kernel and used >= 0.9 * settings.cpu_seconds:
        return SandboxStatus.CPU_LIMIT, f"used {settings.cpu_seconds:g} s of processor time"
    return SandboxStatus.KILLED, f"died of {_name(-code)}"


def _name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def last_lines(text: str) -> str:
    """The end of a traceback or of standard error, without what no file can hold."""
    text = text[-ERROR_CHARACTERS:].encode("utf-8", "replace").decode("utf-8")
    return "\n".join(text.strip().splitlines()[-ERROR_LINES:])


def read_cell(
    raw: Raw, name: str, backend: SandboxBackend, settings: SandboxSettings
) -> SandboxResult:
    """The outcome of a cell that answered."""
    error = ""
    status = SandboxStatus.OK
    try:
        message = _parse(bytes(raw.control).partition(b"\n")[0])
        if message.keys() - {"raised"} != {"id"} or message["id"] != name:
            raise ValueError("not the answer to this cell")
        if "raised" in message:
            error = last_lines(str(message["raised"]))
            last = error.splitlines()[-1:] or [""]
            memory = last[0].startswith("MemoryError")
            status = SandboxStatus.MEMORY_LIMIT if memory else SandboxStatus.RAISED
    except (ValueError, RecursionError) as problem:
        status, error = SandboxStatus.BAD_REPLY, f"forged answer: {problem}"[:300]
    return SandboxResult(
        status=status,
        stdout=_cut(raw, settings),
        error=error,
        wall_seconds=raw.wall_seconds,
        backend=backend,
    )


def read_replies(control: bytes, names: Sequence[str], ended: SandboxResult) -> list[CallResult]:
    """Return what each call gave.

    A line that is no strict JSON, names no call, or names one twice, spoils every call: the code wrote to the
    socket itself. A call that was never answered ended as the process did.

    Args:
        control: all that came over the control socket, bytes of the code's choosing.
        names: the random names of the calls, in order.
        ended: how the process ended.
    """
    found: dict[str, CallResult] = {}
    undefined: CallResult | None = None
    lines = control.split(b"\n")
    if lines.pop() and ended.status is SandboxStatus.OK:
        return _forged(names, "a line without an end")
    for line in lines:
        try:
            message = _parse(line)
        except (ValueError, RecursionError) as error:
            return _forged(names, str(error))
        keys = set(message)
        if keys == {"undefined"}:
            undefined = _raised(message["undefined"])
            continue
        name = message.get("id")
        if not isinstance(name, str) or name not in names or name in found:
            return _forged(names, "it answers no call, or one twice")
        if keys == {"id", "value"}:
            found[name] = _value(message["value"])
        elif keys == {"id", "raised"}:
            found[name] = _raised(message["raised"])
        elif keys == {"id", "bad"}:
            found[name] = CallResult(
                SandboxStatus.BAD_REPLY, error=last_lines(str(message["bad"]))[:300]
            )
        else:
            return _forged(names, "unknown fields")
    if undefined is None:
        undefined = _unanswered(ended)
    return [found.get(name, undefined) for name in names]


def _value(value: Json) -> CallResult:
    level: list[Json] = [value]
    for _ in range(MAX_DEPTH):  # whoever compares or prints it must not run out of stack
        if not level:
            return CallResult(SandboxStatus.OK, value=value)
        level = [
            inner
            for outer in level
            if isinstance(outer, list | dict)
            for inner in (outer.values() if isinstance(outer, dict) else outer)
        ]
    return CallResult(SandboxStatus.BAD_REPLY, error=f"nested more than {MAX_DEPTH} deep")


def _raised(text: object) -> CallResult:
    error = last_lines(str(text))
    memory = (error.splitlines() or [""])[-1].startswith("MemoryError")
    return CallResult(SandboxStatus.MEMORY_LIMIT if memory else SandboxStatus.RAISED, error=error)


def _unanswered(ended: SandboxResult) -> CallResult:
    if ended.status is SandboxStatus.OK:
        return CallResult(SandboxStatus.RAISED, error="the code exited before it answered")
    return CallResult(ended.status, error=ended.error)


def _forged(names: Sequence[str], why: str) -> list[CallResult]:
    return [CallResult(SandboxStatus.BAD_REPLY, error=f"forged answer: {why}"[:300])] * len(names)


def _parse(line: bytes) -> dict[str, Any]:
    """One strict JSON object: UTF-8, no NaN or infinity, no key twice, no number beyond a float's range.

    Raises:
        ValueError, RecursionError: it is anything else.
    """
    message = json.loads(
        line.decode("utf-8"),
        parse_constant=_refuse,
        parse_float=_finite,
        object_pairs_hook=_unique,
    )
    if not isinstance(message, dict):
        raise ValueError("not an object")
    return message


def _refuse(text: str) -> NoReturn:
    raise ValueError(f"{text} is no JSON")


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{text[:40]} is beyond a float's range")
    return number


def _unique(pairs: list[tuple[str, Json]]) -> dict[str, Json]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key stands twice")
    return found
