"""Read a run folder for people and scripts: the state of a run, and what a round holds. Never writes.

Works while the run goes on, and without Ray, torch or MLflow. Shards are read one at a time.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from typing import Any, TypeVar

from orchestrator.runs.events import Event, EventKind, Throughput, read_events
from orchestrator.runs.folder import SHARD_KINDS, RoundFolder, RunFolder, ShardKind
from orchestrator.runs.lease import is_alive
from orchestrator.runs.phases import Collected, Drawn, Phase, Trained
from orchestrator.runs.plug_in_changes import accepted_changes, began_with
from orchestrator.runs.reader import read_config_tree, read_entries, read_sound
from orchestrator.runs.removal_notes import why_gone
from orchestrator.runs.worker_activity import read_activity
from policies.base.errors import ArtifactError, InputError, PawlError
from policies.base.records import Json, Record, RoundResult
from policies.examples.kind import Example
from policies.examples.stored import read_examples
from policies.storage.artifacts import read_marker, read_records

R = TypeVar("R", bound=Record)

_FINAL = {
    EventKind.RUN_FINISHED: "finished",
    EventKind.RUN_FAILED: "failed",
    EventKind.RUN_INTERRUPTED: "interrupted",
}


def read_run_events(folder: RunFolder) -> list[Event]:
    """All events that can be read; events are for people, so a damaged line is passed over (`pawl verify` tells)."""
    return read_events(folder.events)


def results_of(folder: RunFolder) -> list[RoundResult]:
    """Finished rounds, in order.

    Raises:
        CorruptStateError: the journal is damaged.
    """
    entries = [e for e in read_entries(folder) if e.phase is Phase.ACCEPT]
    return [RoundResult.model_validate(e.result) for e in entries]


def run_status(folder: RunFolder) -> dict[str, Any]:
    """Return what `pawl status --json` prints."""
    events, seconds = read_run_events(folder), phase_seconds(folder)
    speed = Throughput()
    for event in events:
        speed.add(event)
    sound = read_sound(folder)
    config = sound.config
    state = run_state(folder, events)
    rounds = [
        {
            "round": r.round,
            "status": r.status.value,
            "version": r.after,
            "reference": r.reference,
            "metrics": r.metrics,
            "seconds": seconds.get(r.round, {}),
            "throughput": speed.of(r.round),
            "reason": r.reason,
        }
        for r in sound.results()
    ]
    return {
        "name": folder.path.name,
        "state": state,
        "experiment": (config.get("tracking") or {}).get("experiment"),
        "path": str(folder.path),
        "rounds_planned": config.get("rounds"),
        "rounds": rounds,
        "current": _current(events) if state == "running" else None,
        "activity": read_activity(folder) if state == "running" else None,
        "damage": list(sound.damage),
        "accepted_changes": _accepted(folder),
        "message": _last_message(events) if state == "failed" else "",
        "warnings": [
            str(e.detail.get("message", "")) for e in events if e.kind is EventKind.WARNING
        ],
    }


def _accepted(folder: RunFolder) -> list[str]:
    """Changes of plug-ins that were taken, in words; a damaged record is what `pawl verify` tells about."""
    try:
        return [change.sentence() for change in accepted_changes(folder, began_with(folder))]
    except PawlError as error:
        return [str(error)]


def phase_seconds(folder: RunFolder) -> dict[int, dict[str, float]]:
    """Seconds by round and phase, repeated phases added up."""
    total: dict[int, dict[str, float]] = {}
    for event in read_run_events(folder):
        spent = event.detail.get("seconds")
        if (
            event.kind is EventKind.PHASE_FINISHED
            and event.round is not None
            and event.phase
            and isinstance(spent, (int, float))
        ):
            row = total.setdefault(event.round, {})
            row[event.phase] = round(row.get(event.phase, 0.0) + float(spent), 3)
    return total


def run_state(folder: RunFolder, events: Sequence[Event]) -> str:
    """running, finished, failed or interrupted; a dead driver that said nothing was interrupted."""
    whole_run = [e.kind for e in events if e.kind in _FINAL or e.kind is EventKind.RUN_STARTED]
    if whole_run and whole_run[-1] in _FINAL:
        return _FINAL[whole_run[-1]]
    return "running" if driver_is_alive(folder) else "interrupted"


def driver_is_alive(folder: RunFolder) -> bool:
    """Tell whether somebody drives the run; `orchestrator.runs.lease` is the judge."""
    return is_alive(folder)


def _current(events: Sequence[Event]) -> dict[str, Any] | None:
    for event in reversed(events):
        if event.kind in (EventKind.PHASE_FINISHED, EventKind.ROUND_FINISHED):
            return {"round": event.round, "phase": None, "since": event.at}
        if event.kind is EventKind.PHASE_STARTED:
            return {"round": event.round, "phase": event.phase, "since": event.at}
        if event.kind in (
            EventKind.WORKERS_STARTING,
            EventKind.WORKERS_READY,
            EventKind.RUN_STARTED,
        ):
            return {"round": None, "phase": event.kind.value, "since": event.at}
    return None


def _last_message(events: Sequence[Event]) -> str:
    failed = [e for e in events if e.kind is EventKind.RUN_FAILED]
    return (
        f"{failed[-1].detail.get('error', '')}: {failed[-1].detail.get('message', '')}"
        if failed
        else ""
    )


def read_config(folder: RunFolder) -> dict[str, Any]:
    """The resolved config as plain values; empty when there is none yet.

    Raises:
        CorruptStateError: it is damaged, or does not belong to the run.
    """
    return read_config_tree(folder) if folder.config.exists() else {}


def stream_examples(folder: RoundFolder) -> Iterator[Example]:
    """Training examples of a round, shard by shard."""
    for path in [folder.shard(i).of("examples") for i in sorted(folder.indices("examples"))]:
        if read_marker(path) is not None:  # a file that is gone, and has its marker, is told
            yield from read_examples(path)


def round_of(folder: RunFolder, index: int) -> RoundFolder:
    """Tell where the samples of a round lie; round 0 only has its measurement.

    Raises:
        InputError: the round has not begun.
    """
    known = folder.rounds()
    if index not in known:
        have = f"0 to {known[-1]}" if known else "none yet"
        raise InputError(
            f"round {index} has not begun in {folder.path} (rounds: {have}). Fix: give one of "
            "them with --round"
        )
    chosen = folder.round(index)
    return chosen.evaluation if index == 0 else chosen


def stream(folder: RoundFolder, kind: ShardKind, record: type[R]) -> Iterator[R]:
    """Records of a round, shard by shard; shards that are not finished are passed over."""
    for path in [folder.shard(index).of(kind) for index in sorted(folder.indices(kind))]:
        if read_marker(path) is not None:  # a file that is gone, and has its marker, is told
            yield from read_records(path, record)


def first_records(folder: RoundFolder, kind: ShardKind, record: type[R], limit: int) -> list[R]:
    """At most `limit` records, reading no more shards than needed."""
    return list(islice(stream(folder, kind, record), limit))


def count_whole(folder: RoundFolder, kind: ShardKind) -> tuple[int, int, list[str]]:
    """Rows of the finished shards of a kind by their markers, how many shards these are, and what is damaged.

    A file counts when its marker is whole and of its size; whoever reads its rows compares its sha256, too.
    """
    num_rows, num_shards, damage = 0, 0, []
    for path in [folder.shard(index).of(kind) for index in sorted(folder.indices(kind))]:
        try:
            marker = read_marker(path)
        except ArtifactError as error:
            damage.append(str(error))
            continue
        if marker is None:
            continue
        size = path.stat().st_size if path.is_file() else None
        if size == marker.num_bytes:
            num_rows, num_shards = num_rows + marker.num_rows, num_shards + 1
        else:
            found = "is missing" if size is None else f"has {size} bytes, not {marker.num_bytes}"
            damage.append(f"{path} {found}, as its marker says")
    return num_rows, num_shards, damage


def _add_on_disk(summary: dict[str, Any], where: RoundFolder, finished: Mapping[str, Json]) -> None:
    """Rows by kind, and what is damaged or lacks of the kinds that a finished phase recorded."""
    found: dict[str, int] = {}
    damage: list[str] = []
    digests = finished.get("digests")
    recorded = digests if isinstance(digests, dict) and not summary["removed"] else {}
    wanted = len(where.prompt_shards())
    for kind in SHARD_KINDS:
        num_rows, num_shards, wrong = count_whole(where, kind)
        damage += wrong
        if kind in recorded and num_shards < wanted:
            damage.append(
                f"{num_shards} of {wanted} shards in {where.path / kind} are whole. Fix: `pawl verify` names the "
                "others; restore them from a copy of the run"
            )
        if num_rows:
            found[kind] = num_rows
    summary["on_disk"] = found
    summary["damage"] += damage


def round_summary(folder: RunFolder, index: int) -> dict[str, Any]:
    """Counts, drops, update and metrics of one round, as far as it has come."""
    where = round_of(folder, index)
    sound = read_sound(folder)
    entries = {e.phase: e.result for e in sound.entries if e.round == index}
    summary: dict[str, Any] = {
        "round": index,
        "damage": list(sound.damage),
        "status": "unfinished",
        "phases": [p.value for p in Phase if p in entries],
    }
    if Phase.DRAW in entries:
        summary["num_prompts"] = Drawn.model_validate(entries[Phase.DRAW]).num_prompts
    summary["removed"] = why_gone(folder, "round", index) or ""
    _add_on_disk(summary, where, entries.get(Phase.COLLECT if index else Phase.EVALUATE, {}))
    if Phase.COLLECT in entries:
        collected = Collected.model_validate(entries[Phase.COLLECT])
        summary |= {
            "num_trajectories": collected.num_trajectories,
            "num_examples": collected.num_examples,
        }
        summary |= {"dropped": collected.dropped, "counts": collected.counts}
    if Phase.TRAIN in entries:
        trained = Trained.model_validate(entries[Phase.TRAIN])
        summary["reference"] = str(trained.reference)
        summary["reference_logprobs"] = trained.logprobs
        summary["skipped_because"] = trained.skipped_because
        if trained.outcome is not None:
            summary["update"] = trained.outcome.model_dump(mode="json", exclude={"metrics"})
    if Phase.ACCEPT in entries:
        result = RoundResult.model_validate(entries[Phase.ACCEPT])
        summary |= {
            "status": result.status.value,
            "reason": result.reason,
            "before": result.before,
            "after": result.after,
        }
        summary["metrics"] = result.metrics
    summary["seconds"] = phase_seconds(folder).get(index, {})
    return summary
