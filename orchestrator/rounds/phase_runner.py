"""Running a phase: from the journal if it has finished before, else for real, timed and recorded."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Any, TypeVar

from orchestrator.rounds.context import RoundScope
from orchestrator.runs.events import EventKind
from orchestrator.runs.phases import Phase, headline
from policies.base.records import Record
from workers.cluster.pinned import check_unchanged

logger = logging.getLogger(__name__)

R = TypeVar("R", bound=Record)


def phase(
    scope: RoundScope,
    name: Phase,
    kind: type[R],
    work: Callable[[RoundScope], R],
    *,
    shards: int = 0,
) -> R:
    """Return what phase `name` of the round leaves; done now unless the journal has it.

    The result is journalled durably before anything can build on it. `shards` is for the progress bar.
    """
    run = scope.run
    known = run.journal.find(scope.index, name, kind)
    if known is not None:
        return known
    run.stop.check()
    check_unchanged(run.plug_ins.codes, str(run.folder.path))
    planned: dict[str, Any] = {"shards": shards} if shards else {}
    index, label = scope.index, name.value
    run.events.emit(EventKind.PHASE_STARTED, round_index=index, phase=label, **planned)
    started = time.monotonic()
    result = work(scope)
    seconds = time.monotonic() - started
    check_unchanged(
        run.plug_ins.codes, str(run.folder.path)
    )  # nothing counts that two of them made
    run.journal.append(index, name, result)
    if run.mirror is not None:
        run.mirror.phase_finished(name)
    facts: dict[str, Any] = {"seconds": round(seconds, 3), **headline(result)}
    run.events.emit(EventKind.PHASE_FINISHED, round_index=index, phase=label, **facts)
    logger.info("round %d: %s took %.1f s", scope.index, name.value, seconds)
    return result
