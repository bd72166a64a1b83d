"""The driver's side of the process of the plug-ins: one for all of them, started when the first is asked about.

`with hosting():` keeps it over several questions; without, each question has a process of its own.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, TypeVar

from orchestrator.config.plug_ins.messages import Answered, Asked, Question
from policies.base import errors
from policies.base.errors import ConfigurationError, PawlError
from policies.base.redaction import looks_like_a_secret, redact_secrets, secret_variables
from workers.cluster.environment import is_secret
from workers.isolation.child_process import (
    ChildLostError,
    ChildProcess,
    ChildTimedOutError,
    child_environment,
    clean_text,
    line_of,
)

T = TypeVar("T")

IMPORT_SECONDS = 60.0
START_SECONDS = 180.0
"""Longest time for the process to start, before it imports any plug-in: our own imports, on a machine that is busy."""
ANSWER_SECONDS = 120.0
"""Longest wait for an answer once everything is imported, where a question has no limit of its own."""
MAX_OUTPUT_BYTES = 2**20
"""What a module may print while it is imported."""


class PlugInLostError(ConfigurationError):
    """The process ended or hung; `reference` is the plug-in that was being imported, empty when none was."""

    reference = ""
    what = ""
    fix = ""


@dataclass(frozen=True)
class HostSettings:
    """Settings with which the process is started."""

    import_seconds: float = IMPORT_SECONDS
    keep: Collection[str] = ()
    """Names of secrets that plug-ins may see (`cluster.pass_secrets`)."""


class PlugInHost:
    """The process, while there is one; a fresh one takes its place when it is lost."""

    def __init__(self) -> None:
        self._child: ChildProcess | None = None
        self._number = 0
        self.memory: dict[tuple[str, int], tuple[object, Any]] = {}
        """Answers by what was asked and the identity of what it was asked about, which is kept alive beside them."""

    def ask(
        self,
        what: Question,
        body: Mapping[str, Any],
        settings: HostSettings,
        *,
        seconds: float = ANSWER_SECONDS,
    ) -> dict[str, Any]:
        """Return the answer.

        Raises:
            PlugInLostError: a plug-in ended or hung the process, or flooded its output.
            PawlError: what a plug-in raised, as the class of ours that it was told as.
        """
        fresh = self._child is None
        if self._child is None:
            environment = environment_of_plug_ins(os.environ, settings.keep)
            self._child = ChildProcess(
                "orchestrator.config.plug_ins.child", environment=environment
            )
        self._number += 1
        line = line_of(Asked(id=self._number, what=what, body=dict(body)))
        try:
            answer = self._answer(self._child, line, settings, seconds, fresh=fresh)
        except BaseException:
            self.close()
            raise
        if answer.failed:
            raise _raised(answer)
        return dict(answer.body)

    def _answer(
        self,
        child: ChildProcess,
        line: bytes,
        settings: HostSettings,
        seconds: float,
        *,
        fresh: bool,
    ) -> Answered:
        reference, last, limit, printed = "", "", seconds, child.num_output_bytes
        try:
            answer = child.exchange(line, Answered, limit + (START_SECONDS if fresh else 0.0))
            while answer.loading or answer.loaded:
                if answer.loaded and child.num_output_bytes - printed > MAX_OUTPUT_BYTES:
                    raise _lost(reference, f"prints more than {MAX_OUTPUT_BYTES} bytes", settings)
                reference = answer.loading
                last = reference or last
                limit = settings.import_seconds if reference else seconds
                printed = child.num_output_bytes
                answer = child.next_line(Answered, limit)
        except ChildTimedOutError:
            doing = f"takes more than {limit:g} s"
            raise _lost(reference, doing, settings, last=last) from None
        except ChildLostError as error:
            raise _lost(
                reference, child.exit_report(str(error)), settings, ended=True, last=last
            ) from None
        if answer.id != self._number:
            raise _lost(reference, "is answered by another process than was asked", settings)
        return answer

    def close(self) -> None:
        """Kill the process with all that it started."""
        if self._child is not None:
            self._child.kill()
            self._child = None


_HOST: ContextVar[PlugInHost | None] = ContextVar("plug_in_host", default=None)


@contextmanager
def hosting() -> Iterator[None]:
    """Let one process answer all questions meanwhile; it is killed at the end."""
    if _HOST.get() is not None:
        yield
        return
    host = PlugInHost()
    token = _HOST.set(host)
    try:
        yield
    finally:
        _HOST.reset(token)
        host.close()


def ask(
    what: Question,
    body: Mapping[str, Any],
    settings: HostSettings = HostSettings(),  # frozen
    *,
    seconds: float = ANSWER_SECONDS,
) -> dict[str, Any]:
    """Ask the process of `hosting`, or one for this question alone; raises what `PlugInHost.ask` does."""
    with hosting():
        host = _HOST.get()
        assert host is not None
        return host.ask(what, body, settings, seconds=seconds)


def remembered(question: str, about: object, find: Callable[[], T]) -> T:
    """Return what `find` returns, found once for as long as `hosting` lasts."""
    host = _HOST.get()
    if host is None:
        return find()
    key = (question, id(about))
    if key not in host.memory:
        host.memory[key] = (about, find())
    found: T = host.memory[key][1]
    return found


def environment_of_plug_ins(
    environment: Mapping[str, str], keep: Collection[str] = ()
) -> dict[str, str]:
    """The variables of the process: those of this one without secrets, told by their names and by their values."""
    named = secret_variables(environment)
    found = {
        name: value
        for name, value in environment.items()
        if name in keep
        or not (
            name in named
            or is_secret(name)
            or looks_like_a_secret(value)
            or redact_secrets(value) != value
        )
    }
    return found | {"PYTHONPATH": child_environment(environment)["PYTHONPATH"]}


def _lost(
    reference: str, doing: str, settings: HostSettings, *, ended: bool = False, last: str = ""
) -> PlugInLostError:
    doing = clean_text(doing)
    if not reference:
        what = f"a plug-in did not answer after it was imported: {doing}"
        fix = "use its settings and methods in a Python shell, and look for what ends or stops the process"
        reference = last
    elif ended:
        what = f"importing the module of a plug-in ended its process: {doing}"
        fix = "take what ends the process out of the module, or put it under `if __name__ == '__main__':`"
    elif "more than" in doing and doing.startswith("takes"):
        what = f"importing the module of a plug-in {doing}"
        fix = (
            "do nothing long when the module is imported, or raise cluster.import_timeout_seconds "
            f"(it is {settings.import_seconds:g})"
        )
    else:
        what = f"importing the module of a plug-in {doing}"
        fix = "let the module print nothing when it is imported"
    error = PlugInLostError(f"{what} (got {reference!r}). Set by: the config. Fix: {fix}")
    error.reference, error.what, error.fix = reference, what, fix
    return error


def _raised(answer: Answered) -> PawlError:
    kind = vars(errors).get(answer.kind)
    if isinstance(kind, type) and issubclass(kind, PawlError):
        return kind(answer.failed)
    return ConfigurationError(
        f"a plug-in failed: {answer.failed} Set by: the config. Fix: correct the plug-in"
    )
