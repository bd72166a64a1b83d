"""Running a phase: from the journal if it has finished before, else for real, timed and recorded."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import TypeVar

from orchestrator.events import EventKind
from orchestrator.phases import Phase
from orchestrator.run import RoundScope
from policies.records import Record

logger = logging.getLogger(__name__)

R = TypeVar("R", bound=Record)


def phase(scope: RoundScope, name: Phase, kind: type[R], work: Callable[[RoundScope], R]) -> R:
    """What phase `name` of the round leaves; done now unless the journal has it.

    The result is journalled durably before anything can build on it.
    """
    run = scope.run
    known = run.journal.find(scope.index, name, kind)
    if known is not None:
        return known
    run.stop.check()
    run.events.emit(EventKind.PHASE_STARTED, round_index=scope.index, phase=name.value)
    started = time.monotonic()
    result = work(scope)
    seconds = time.monotonic() - started
    run.journal.append(scope.index, name, result)
    run.events.emit(
        EventKind.PHASE_FINISHED,
        round_index=scope.index,
        phase=name.value,
        seconds=round(seconds, 3),
    )
    logger.info("round %d: %s took %.1f s", scope.index, name.value, seconds)
    return result
