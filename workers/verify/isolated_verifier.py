"""Verifiers in processes of their own: what they raise, print, leak or never finish stays there.

Each verifier has one child process (see `child.py`), which is asked about one trajectory at a time, or about all
attempts at a prompt where the verifier takes groups. A timeout is an error verdict, and so is a second death over the
same question: the first may have been somebody else's doing, e.g. the kernel's, short of memory. The next question
gets a new process. This contains accidents, not attacks: code that must not be trusted at all belongs in the sandbox.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Self

from policies.base.component_walk import named_secrets
from policies.base.errors import VerificationError, explain
from policies.base.records import Prompt, Trajectory, Verdict, VerdictStatus
from workers.cluster.heartbeat import report_progress
from workers.isolation.child_process import (
    ChildLostError,
    ChildProcess,
    ChildTimedOutError,
    clean_text,
    line_of,
)
from workers.verify.child import Hello, Reply, Request, Started
from workers.verify.probe import Probe
from workers.verify.verifier import Verifier

MAX_START_FAILURES = 3
"""After so many failed starts in a row the same error is reported without another process."""
PROBE_SPARE_SECONDS = 5.0
"""A probe may take so much longer than the calls that it makes."""


class IsolatedVerifier:
    """One verifier behind a process boundary; every call returns a verdict per trajectory, whatever happens.

    All its work runs on one thread that lives until `close`, because the kernel ends the child together
    with the thread that started it: that is what makes the child die when this process is killed.
    """

    def __init__(self, config: Verifier.Config, *, start_timeout_seconds: float = 120.0) -> None:
        """Start nothing yet: the process starts with the first trajectory.

        Args:
            config: settings of the verifier.
            start_timeout_seconds: longest time for the process to import and prepare the verifier.
        """
        self.config = config
        self._start_timeout_seconds = start_timeout_seconds
        self._thread = ThreadPoolExecutor(1, thread_name_prefix=f"verifier-{config.source}")
        self._child: ChildProcess | None = None
        self._closed = False
        self.takes_groups = False
        self._num_requests = 0
        self._num_start_failures = 0
        self._start_failure = ""

    def submit(self, items: Sequence[tuple[Prompt, Trajectory]]) -> Future[list[Verdict]]:
        """Start judging `items` in order; several verifiers work side by side this way."""
        return self._thread.submit(self._judge_all, items)

    def verify(self, prompt: Prompt, trajectory: Trajectory) -> Verdict:
        """The verdict on one trajectory."""
        return self.submit([(prompt, trajectory)]).result()[0]

    @property
    def start_failure(self) -> str:
        """Tell why the last start failed; empty when it did not."""
        return self._start_failure if self._num_start_failures else ""

    def close(self) -> None:
        """Kill the process, whatever it is doing, and end the thread."""
        self._closed = True
        child = self._child
        if child is not None:
            child.kill()
        self._thread.shutdown(wait=True, cancel_futures=True)
        if self._child is not None:
            self._child.kill()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def probe(self, prompt: Prompt, attempts: Sequence[Trajectory]) -> Probe:
        """Try the verifier on made-up attempts at a real prompt; a problem where it does not start, hangs or dies."""
        asking = self.config.timeout_seconds * max(2, len(attempts)) + PROBE_SPARE_SECONDS
        # The thread bounds both itself; this holds should it be asked while it still judges.
        limit = self._start_timeout_seconds + asking + PROBE_SPARE_SECONDS
        return self._thread.submit(self._probe, prompt, attempts).result(limit)

    def first_question(self, items: Sequence[tuple[Prompt, Trajectory]]) -> int:
        """Tell how many of `items` are asked about in the first request: 1, or all attempts at the first prompt."""
        if not items or not self.takes_groups:
            return min(1, len(items))
        first = items[0][0].id
        return next((i for i, (p, _) in enumerate(items) if p.id != first), len(items))

    def _probe(self, prompt: Prompt, attempts: Sequence[Trajectory]) -> Probe:
        try:
            child = self._running_child()
        except VerificationError as error:
            return Probe(problem=str(error))
        each = self.config.timeout_seconds
        limit = each * (len(attempts) if self.takes_groups else 2) + PROBE_SPARE_SECONDS
        self._num_requests += 1
        request = Request(
            id=self._num_requests, prompt=prompt, trajectories=tuple(attempts), probe=True
        )
        try:
            reply = child.exchange(line_of(request), Reply, limit)
            if reply.probe is not None:
                return reply.probe
            failure = "it answered with something else"
        except ChildTimedOutError:
            failure = f"it takes more than {each:g} s for an attempt; raise verifiers[...].timeout_seconds"
        except ChildLostError as error:
            failure = child.exit_report(str(error))
        self._discard()
        problem = explain(
            f"verifier {self.config.source!r} failed on made-up attempts at a real prompt: {failure}",
            value=f"prompt {prompt.id}",
            where=f"verifiers[...].type = {self.config.type}",
            fix="correct it, or name another function",
        )
        return Probe(problem=clean_text(problem), failed=True)

    def _judge_all(self, items: Sequence[tuple[Prompt, Trajectory]]) -> list[Verdict]:
        written: dict[str, str] = {}
        verdicts: list[Verdict] = []
        with contextlib.suppress(VerificationError):  # told again by the first question
            if items:
                self._running_child()  # it knows whether it takes groups
        while len(verdicts) < len(items):
            rest = items[len(verdicts) :]
            asked = rest[: self.first_question(rest)]
            prompt = asked[0][0]
            if prompt.id not in written:
                written = {prompt.id: prompt.model_dump_json()}  # a group comes in one piece
            verdicts += self._judge(written[prompt.id], [trajectory for _, trajectory in asked])
            report_progress(verdicts=len(asked))
        return verdicts

    def _judge(
        self, prompt_json: str, trajectories: Sequence[Trajectory], *, again: bool = False
    ) -> list[Verdict]:
        try:
            child = self._running_child()
        except VerificationError as error:
            return self._failed(trajectories, str(error), 0.0)
        self._num_requests += 1
        number = self._num_requests
        attempts = ",".join(trajectory.model_dump_json() for trajectory in trajectories)
        line = f'{{"id":{number},"prompt":{prompt_json},"trajectories":[{attempts}]}}\n'
        started = time.monotonic()
        limit = self.config.timeout_seconds * len(trajectories)
        try:
            reply = child.exchange(line.encode(), Reply, limit)
            self._check(reply, number, trajectories)
        except ChildTimedOutError:
            error_text = (
                f"timed out after {limit:g} s (verifiers[...].timeout_seconds"
                f"{f' x {len(trajectories)} attempts' if len(trajectories) > 1 else ''}). "
                "Fix: raise it, or make the verifier faster"
            )
        except ChildLostError as error:
            error_text = child.exit_report(str(error))
            if not again:
                self._discard()
                return self._judge(prompt_json, trajectories, again=True)
        else:
            seconds = (time.monotonic() - started) / len(trajectories)
            return [_received(verdict, seconds) for verdict in reply.verdicts]
        self._discard()
        return self._failed(trajectories, error_text, time.monotonic() - started)

    def _check(self, reply: Reply, number: int, trajectories: Sequence[Trajectory]) -> None:
        if reply.id != number:
            raise ChildLostError(f"answered request {reply.id} instead of {number}")
        if len(reply.verdicts) != len(trajectories):
            raise ChildLostError(
                f"gave {len(reply.verdicts)} verdicts on {len(trajectories)} trajectories"
            )
        for verdict, trajectory in zip(reply.verdicts, trajectories, strict=True):
            if verdict.trajectory_id != trajectory.id:
                raise ChildLostError(
                    f"gave a verdict on {verdict.trajectory_id!r} instead of {trajectory.id!r}"
                )
            if verdict.source != self.config.source:
                raise ChildLostError(
                    f"signed its verdict {verdict.source!r} instead of {self.config.source!r}"
                )

    def _failed(
        self, trajectories: Sequence[Trajectory], text: str, seconds: float
    ) -> list[Verdict]:
        """An error for each trajectory; `seconds` is what all of them took."""
        return [
            Verdict(
                source=self.config.source,
                trajectory_id=trajectory.id,
                status=VerdictStatus.ERROR,
                error=clean_text(text),
                seconds=seconds / len(trajectories),
            )
            for trajectory in trajectories
        ]

    def _running_child(self) -> ChildProcess:
        if self._child is not None:
            return self._child
        if self._closed:
            raise VerificationError(f"verifier {self.config.source!r} was closed")
        if self._num_start_failures >= MAX_START_FAILURES:
            raise VerificationError(self._start_failure)
        kept = named_secrets(self.config)
        self._child = ChildProcess("workers.verify.child", secrets_kept=kept)
        try:
            hello = Hello(config=self.config.model_dump(mode="json"))
            line = hello.model_dump_json().encode() + b"\n"
            started = self._child.exchange(line, Started, self._start_timeout_seconds)
            failure = "" if started.ready else started.failed
            self.takes_groups = started.takes_groups
        except ChildTimedOutError:
            failure = self._child.exit_report(
                f"took more than {self._start_timeout_seconds:g} s to start"
            )
        except ChildLostError as error:
            failure = self._child.exit_report(str(error))
        if not failure:
            self._num_start_failures = 0
            return self._child
        self._discard()
        self._num_start_failures += 1
        self._start_failure = explain(
            f"verifier {self.config.source!r} does not start: {failure}",
            value=self.config.type,
            where="verifiers[...]",
            fix="run `pawl validate`, or import the verifier in a Python shell",
        )
        raise VerificationError(self._start_failure)

    def _discard(self) -> None:
        if self._child is not None:
            self._child.kill()
            self._child = None


def _received(verdict: Verdict, seconds: float) -> Verdict:
    error = None if verdict.error is None else clean_text(verdict.error)
    changes = {"seconds": seconds, "error": error, "rationale": clean_text(verdict.rationale)}
    return verdict.model_copy(update=changes)
