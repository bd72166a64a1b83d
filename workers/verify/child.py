"""The process in which one verifier runs: `python -m workers.verify.child FD PARENT_PID`.

Protocol, one JSON object per line over the socket FD: the parent sends the verifier's settings, the child
answers `{"ready": true}` or `{"failed": "..."}`; then every request `{"id", "prompt", "trajectory"}` is
answered by `{"id", "verdict"}`. Nothing is pickled; what the verifier prints cannot reach the socket.
"""

from __future__ import annotations

from pydantic import JsonValue

from policies.component import create
from policies.errors import PawlError, VerificationError, boundary, explain
from policies.records import Prompt, Record, Trajectory, Verdict, VerdictStatus
from workers.child_process import begin_as_child, line_of, storable
from workers.verify.verifier import VERIFIERS, Verifier


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
    connection = begin_as_child()
    with connection, connection.makefile("rb") as requests:
        verifier, started = _start(Hello.model_validate_json(requests.readline()))
        connection.sendall(line_of(started))
        if verifier is None:
            return
        for line in requests:
            request = Request.model_validate_json(line)
            reply = Reply(id=request.id, verdict=_judge(verifier, request))
            connection.sendall(line_of(reply))


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
            error=storable(str(error)),
        )


if __name__ == "__main__":
    main()
