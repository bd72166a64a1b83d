"""Verifiers in processes of their own: what they raise, print, leak or never finish stays there.

Each verifier has one child process (see `child.py`). A timeout is an error verdict, and so is a second death over the
same trajectory: the first may have been somebody else's doing, e.g. the kernel's, short of memory. The next trajectory
gets a new process. This contains accidents, not attacks: code that must not be trusted at all belongs in the sandbox.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Self

from policies.errors import VerificationError, explain
from policies.records import Prompt, Trajectory, Verdict, VerdictStatus
from workers.alive import beat
from workers.child_process import ChildLostError, ChildProcess, ChildTimedOutError, clean_text
from workers.verify.child import Hello, Reply, Started
from workers.verify.verifier import Verifier

MAX_START_FAILURES = 3
"""After so many failed starts in a row the same error is reported without another process."""


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
        """Why the last start failed; empty when it did not."""
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

    def _judge_all(self, items: Sequence[tuple[Prompt, Trajectory]]) -> list[Verdict]:
        written: dict[str, str] = {}
        verdicts = []
        for prompt, trajectory in items:
            if prompt.id not in written:
                written = {prompt.id: prompt.model_dump_json()}  # a group comes in one piece
            verdicts.append(self._judge(written[prompt.id], trajectory))
            beat(verdicts=1)
        return verdicts

    def _judge(self, prompt_json: str, trajectory: Trajectory, *, again: bool = False) -> Verdict:
        try:
            child = self._running_child()
        except VerificationError as error:
            return self._failed(trajectory, str(error), 0.0)
        self._num_requests += 1
        number = self._num_requests
        line = f'{{"id":{number},"prompt":{prompt_json},"trajectory":{trajectory.model_dump_json()}}}\n'
        started = time.monotonic()
        try:
            reply = child.exchange(line.encode(), Reply, self.config.timeout_seconds)
            self._check(reply, number, trajectory)
        except ChildTimedOutError:
            error_text = (
                f"timed out after {self.config.timeout_seconds:g} s (verifiers[...].timeout_seconds). "
                "Fix: raise it, or make the verifier faster"
            )
        except ChildLostError as error:
            error_text = child.epitaph(str(error))
            if not again:
                self._discard()
                return self._judge(prompt_json, trajectory, again=True)
        else:
            return _received(reply.verdict, time.monotonic() - started)
        self._discard()
        return self._failed(trajectory, error_text, time.monotonic() - started)

    def _check(self, reply: Reply, number: int, trajectory: Trajectory) -> None:
        if reply.id != number:
            raise ChildLostError(f"answered request {reply.id} instead of {number}")
        verdict = reply.verdict
        if verdict.trajectory_id != trajectory.id:
            raise ChildLostError(
                f"gave a verdict on {verdict.trajectory_id!r} instead of {trajectory.id!r}"
            )
        if verdict.source != self.config.source:
            raise ChildLostError(
                f"signed its verdict {verdict.source!r} instead of {self.config.source!r}"
            )

    def _failed(self, trajectory: Trajectory, text: str, seconds: float) -> Verdict:
        return Verdict(
            source=self.config.source,
            trajectory_id=trajectory.id,
            status=VerdictStatus.ERROR,
            error=clean_text(text),
            seconds=seconds,
        )

    def _running_child(self) -> ChildProcess:
        if self._child is not None:
            return self._child
        if self._closed:
            raise VerificationError(f"verifier {self.config.source!r} was closed")
        if self._num_start_failures >= MAX_START_FAILURES:
            raise VerificationError(self._start_failure)
        self._child = ChildProcess("workers.verify.child")
        try:
            hello = Hello(config=self.config.model_dump(mode="json"))
            line = hello.model_dump_json().encode() + b"\n"
            started = self._child.exchange(line, Started, self._start_timeout_seconds)
            failure = "" if started.ready else started.failed
        except ChildTimedOutError:
            failure = self._child.epitaph(
                f"took more than {self._start_timeout_seconds:g} s to start"
            )
        except ChildLostError as error:
            failure = self._child.epitaph(str(error))
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
