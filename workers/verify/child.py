"""The process in which one verifier runs: `python -m workers.verify.child FD PARENT_PID`.

Protocol, one JSON object per line over the socket FD: the parent sends the verifier's settings, the child
answers `{"ready": true}` or `{"failed": "..."}`; then every request `{"id", "prompt", "trajectory"}` is
answered by `{"id", "verdict"}`. Nothing is pickled; what the verifier prints cannot reach the socket.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import resource
import signal
import socket
import sys
from pathlib import Path

from pydantic import JsonValue

from policies.component import create
from policies.errors import PawlError, VerificationError, boundary, explain
from policies.records import Prompt, Record, Trajectory, Verdict, VerdictStatus
from workers.verify.verifier import VERIFIERS, Verifier

_PR_SET_PDEATHSIG = 1


class Hello(Record):
    """The first message: settings of the verifier."""

    config: dict[str, JsonValue]


class Started(Record):
    """The answer to `Hello`. Example: `Started(ready=False, failed="no module named x")`."""

    ready: bool
    failed: str = ""


class Request(Record):
    """One trajectory to judge."""

    id: int
    prompt: Prompt
    trajectory: Trajectory


class Reply(Record):
    """The verdict on the trajectory of the request with this id."""

    id: int
    verdict: Verdict


def main() -> None:
    """Serve one verifier until the parent hangs up or dies."""
    descriptor, parent = int(sys.argv[1]), int(sys.argv[2])
    _die_with(parent)
    _be_the_first_to_go()
    connection = socket.socket(fileno=descriptor)
    with connection, connection.makefile("rb") as requests:
        verifier, started = _start(Hello.model_validate_json(requests.readline()))
        connection.sendall(_line(started))
        if verifier is None:
            return
        for line in requests:
            request = Request.model_validate_json(line)
            reply = Reply(id=request.id, verdict=_judge(verifier, request))
            connection.sendall(_line(reply))


def _line(message: Record) -> bytes:
    return message.model_dump_json().encode() + b"\n"


def _start(hello: Hello) -> tuple[Verifier | None, Started]:
    try:
        with boundary(VerificationError, "the verifier cannot be started"):
            verifier: Verifier = create(VERIFIERS.parse(hello.config))
            prepare = getattr(verifier, "prepare", None)
            if prepare is not None:
                prepare()
    except PawlError as error:
        return None, Started(ready=False, failed=str(error))
    return verifier, Started(ready=True)


def _judge(verifier: Verifier, request: Request) -> Verdict:
    source = verifier.config.source
    try:
        with boundary(VerificationError, f"verifier {source!r} failed"):
            verdict = verifier.verify(request.prompt, request.trajectory)
            if not isinstance(verdict, Verdict):
                raise VerificationError(
                    explain(
                        f"verify() of {source!r} must return a Verdict",
                        value=f"{type(verdict).__name__} {verdict!r}"[:120],
                        where=f"{type(verifier).__module__}:{type(verifier).__qualname__}",
                        fix="return self.scored(trajectory, score) or self.abstain(trajectory, reason)",
                    )
                )
            return verdict
    except PawlError as error:
        return Verdict(
            source=source,
            trajectory_id=request.trajectory.id,
            status=VerdictStatus.ERROR,
            error=_storable(str(error)),
        )


def _storable(text: str) -> str:
    # An exception's text may hold lone surrogates, which neither JSON nor Parquet can carry.
    return text.encode("utf-8", "replace").decode("utf-8")


def _die_with(parent: int) -> None:
    """Let the kernel kill this process when its parent's thread ends, even inside C code that holds the GIL."""
    with contextlib.suppress(
        OSError, AttributeError
    ):  # not Linux: the closed socket ends an idle child
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:  # it died before the call above took effect
        sys.exit(1)


def _be_the_first_to_go() -> None:
    """Let the kernel's out-of-memory killer choose this process before the worker; write no core files."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000", encoding="ascii")


if __name__ == "__main__":
    main()
