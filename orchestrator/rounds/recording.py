"""Telling people about a finished round: events first, tracker second; the journal has it already."""

from __future__ import annotations

from orchestrator.rounds.context import Run
from orchestrator.runs.events import EventKind
from policies.base.records import RoundResult


def record_round(run: Run, result: RoundResult) -> None:
    """Hand the round to the tracker and emit its event."""
    seconds = run.events.phase_seconds(result.round)
    speed = run.events.throughput(result.round)
    _tell_tracker(run, result)
    run.events.emit(
        EventKind.ROUND_FINISHED,
        round_index=result.round,
        result=result.model_dump(mode="json"),
        seconds=seconds,
        throughput=speed,
    )


def record_what_was_missed(run: Run) -> None:
    """Record rounds that the journal has and the events or the tracker have not: the driver died in between, or the
    disk took the one and not the other.
    """
    for result in run.journal.results():
        if result.round not in run.events.reported_rounds:
            record_round(run, result)
        else:
            _tell_tracker(run, result)  # passed over where it knows the round


def _tell_tracker(run: Run, result: RoundResult) -> None:
    speed = run.events.throughput(result.round)
    timed = result.model_copy(update={"metrics": result.metrics | speed})
    seconds = run.events.phase_seconds(result.round)
    run.tracker.round_finished(timed, seconds, run.folder.round(result.round))
