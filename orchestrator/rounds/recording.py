"""Telling people about a finished round: events first, tracker second; the journal has it already."""

from __future__ import annotations

from orchestrator.events import EventKind
from orchestrator.run import Run
from policies.records import RoundResult


def record_round(run: Run, result: RoundResult) -> None:
    """Hand the round to the tracker and emit its event."""
    seconds = run.events.phase_seconds(result.round)
    speed = run.events.throughput(result.round)
    timed = result.model_copy(update={"metrics": result.metrics | speed})
    run.tracker.round_finished(timed, seconds, run.folder.round(result.round))
    run.events.emit(
        EventKind.ROUND_FINISHED,
        round_index=result.round,
        result=result.model_dump(mode="json"),
        seconds=seconds,
        throughput=speed,
    )


def record_what_was_missed(run: Run) -> None:
    """Record rounds that the journal has and the events have not: the driver died in between."""
    for result in run.journal.results():
        if result.round not in run.events.reported_rounds:
            record_round(run, result)
