"""The process in which one verifier runs: `python -m workers.verify.child FD PARENT_PID`.

Protocol, one JSON object per line over the socket FD: the parent sends the verifier's settings, the child
answers `{"ready": true}` or `{"failed": "..."}`; then every request `{"id", "prompt", "trajectories"}` is
answered by `{"id", "verdicts"}`. Nothing is pickled; what the verifier prints cannot reach the socket.
"""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import JsonValue

from policies.base.component import create, import_from_folder_of
from policies.base.component_walk import stated_requirements
from policies.base.errors import PawlError, VerificationError, boundary, explain
from policies.base.records import Prompt, Record, Trajectory, Verdict
from workers.isolation.child_process import begin_as_child, clean_text, line_of, storable
from workers.verify.probe import Probe, probe
from workers.verify.raised_at import raised_at
from workers.verify.verifier import VERIFIERS, Verifier


class Hello(Record):
    """The first message: settings of the verifier."""

    config: dict[str, JsonValue]


class Started(Record):
    """The answer to `Hello`. Example: `Started(ready=False, failed="no module named x")`."""

    ready: bool
    failed: str = ""
    takes_groups: bool = False
    """All attempts at a prompt belong in one request."""


class Request(Record):
    """Attempts at one prompt to judge: one, or all of them where the verifier takes groups."""

    id: int
    prompt: Prompt
    trajectories: tuple[Trajectory, ...]
    probe: bool = False
    """Try the verifier on these attempts, which no policy made, and tell what it does."""


class Reply(Record):
    """The verdicts on the trajectories of the request with this id, in order; or what the probe showed."""

    id: int
    verdicts: tuple[Verdict, ...] = ()
    probe: Probe | None = None


def main() -> None:
    """Serve one verifier until the parent hangs up or dies."""
    connection = begin_as_child()
    with connection, connection.makefile("rb") as requests:
        verifier, started = _start(Hello.model_validate_json(requests.readline()))
        connection.sendall(line_of(started))
        if verifier is None:
            return
        for line in requests:
            connection.sendall(line_of(_answer(verifier, Request.model_validate_json(line))))


def _answer(verifier: Verifier, request: Request) -> Reply:
    if request.probe:
        return Reply(
            id=request.id, probe=probe(verifier, request.prompt, request.trajectories, judge)
        )
    verdicts = judge(verifier, request.prompt, request.trajectories)
    return Reply(id=request.id, verdicts=tuple(verdicts))


def _start(hello: Hello) -> tuple[Verifier | None, Started]:
    try:
        with boundary(VerificationError, "the verifier cannot be started"):
            for reference in (hello.config.get("function"), hello.config.get("type")):
                import_from_folder_of(str(reference))
            verifier: Verifier = create(VERIFIERS.parse(hello.config))
            prepare = getattr(verifier, "prepare", None)
            if prepare is not None:
                prepare()
            takes_groups = verifier.takes_groups
    except PawlError as error:
        return None, Started(ready=False, failed=clean_text(storable(_with_place(error))))
    return verifier, Started(ready=True, takes_groups=takes_groups)


def judge(verifier: Verifier, prompt: Prompt, trajectories: Sequence[Trajectory]) -> list[Verdict]:
    """The verdicts on attempts at one prompt; where the verifier fails, an error for each of them."""
    source = verifier.config.source
    try:
        with boundary(VerificationError, f"verifier {source!r} failed"):
            if verifier.takes_groups:
                verdicts = list(verifier.verify_group(prompt, trajectories))
            else:
                verdicts = [verifier.verify(prompt, t) for t in trajectories]
            for verdict in verdicts:
                _check(verifier, verdict)
            if len(verdicts) != len(trajectories):
                raise VerificationError(
                    explain(
                        f"verify_group() of {source!r} must return a Verdict for each attempt",
                        value=f"{len(verdicts)} for {len(trajectories)}",
                        where=f"{type(verifier).__module__}:{type(verifier).__qualname__}",
                        fix="return as many as it was given, in order",
                    )
                )
            return [_tidy(verdict) for verdict in verdicts]
    except PawlError as error:
        text = clean_text(storable(_with_place(error)))
        return [verifier.failed(trajectory, text) for trajectory in trajectories]


def _check(verifier: Verifier, verdict: object) -> None:
    if not isinstance(verdict, Verdict):
        raise VerificationError(
            explain(
                f"verify() of {verifier.config.source!r} must return a Verdict",
                value=f"{type(verdict).__name__} {verdict!r}"[:120],
                where=f"{type(verifier).__module__}:{type(verifier).__qualname__}",
                fix="return self.scored(trajectory, score) or self.abstain(trajectory, reason)",
            )
        )
    if verdict.raw and not stated_requirements(verifier.config).raw_scores:
        raise VerificationError(
            explain(
                f"{verifier.config.source!r} gave a raw score and does not say so before the run",
                value=verdict.score,
                where=f"{type(verifier).__module__}:{type(verifier).__qualname__}",
                fix="let Config.requires() return super().requires() + Requirements(raw_scores=True)",
            )
        )


def _tidy(verdict: Verdict) -> Verdict:
    """Texts that any line can carry, and not longer than the parent keeps."""
    error = None if verdict.error is None else clean_text(storable(verdict.error))
    rationale = clean_text(storable(verdict.rationale))
    return verdict.model_copy(update={"error": error, "rationale": rationale})


def _with_place(error: PawlError) -> str:
    """The text of an error with where in the user's code it arose; our own errors say where they belong."""
    place = raised_at(error) if error.__cause__ is not None else ""
    return f"{error} ({place})" if place else str(error)


if __name__ == "__main__":
    main()
