"""Starting and resuming a run: the folder, the driver's claim on it, signals, and a truthful end."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import socket
import uuid
from collections.abc import Sequence
from datetime import UTC, datetime

from orchestrator.assembly import assemble
from orchestrator.config import RunConfig
from orchestrator.events import EventKind, EventLog, Observer
from orchestrator.loop import run_rounds
from orchestrator.recording import record_what_was_missed
from orchestrator.run import Run
from orchestrator.run_folder import RunFolder
from orchestrator.stopping import StopRequest, listening
from orchestrator.tracking import make_tracker
from orchestrator.tracking_spool import TrackedRun
from orchestrator.tracking_tags import tracked_run, versions
from policies.errors import ConfigurationError, PawlError, ResumeError, explain
from policies.records import Record, RoundResult
from policies.shards import write_json

logger = logging.getLogger(__name__)

SCHEMA_VERSION = 1


class RunIdentity(Record):
    """What a run is; written once. Example: `RunIdentity(name="quickstart-1", config_digest="9f..", ...)`."""

    schema_version: int
    run_id: str
    """Random and unique; stays the same over resumes."""
    name: str
    experiment: str
    created_at: str
    config_digest: str
    versions: dict[str, str]


class RunSummary(Record):
    """How a run ended."""

    results: tuple[RoundResult, ...]
    reason: str


def run_experiment(
    config: RunConfig, folder: RunFolder, *, source: str, observers: Sequence[Observer] = ()
) -> RunSummary:
    """Start a new run in `folder` and drive it to its end.

    Raises:
        ConfigurationError: the folder holds a run already.
        PawlError: the run failed; what finished stays and can be resumed.
        InterruptedRun: it was asked to stop.
    """
    if folder.identity.exists():
        raise ConfigurationError(
            explain(
                "the folder holds a run already",
                value=str(folder.path),
                where="--name",
                fix=f"choose another name, or go on with `pawl resume {folder.path}`",
            )
        )
    folder.path.mkdir(parents=True, exist_ok=True, mode=0o700)
    write_json(folder.config, config.model_dump(mode="json"))
    folder.config_source.write_text(source, encoding="utf-8")
    identity = RunIdentity(
        schema_version=SCHEMA_VERSION,
        run_id=uuid.uuid4().hex,
        name=folder.path.name,
        experiment=config.tracking.experiment,
        created_at=datetime.now(UTC).isoformat(),
        config_digest=config_digest(config),
        versions=versions(),
    )
    write_json(folder.identity, identity.model_dump(mode="json"))
    return _drive(config, folder, observers, resumed=False)


def resume_experiment(folder: RunFolder, observers: Sequence[Observer] = ()) -> RunSummary:
    """Go on with the run in `folder` from its last finished phase or shard.

    Raises:
        ResumeError: it is not a run, is driven by another process now, or its config was edited.
    """
    identity = read_identity(folder)
    config = read_config(folder)
    if config_digest(config) != identity.config_digest:
        raise ResumeError(
            f"{folder.config} was edited since the run began: its digest is not that "
            "of run.json. Fix: undo the edit, or start a new run"
        )
    return _drive(config, folder, observers, resumed=True)


def read_identity(folder: RunFolder) -> RunIdentity:
    """`run.json` of a run.

    Raises:
        ResumeError: it cannot be read, or was written by a newer Pawl.
    """
    try:
        found = json.loads(folder.identity.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ResumeError(f"{folder.identity} cannot be read: {error}") from error
    if found.get("schema_version") != SCHEMA_VERSION:
        raise ResumeError(
            f"{folder.path} was written by another version of Pawl (schema {found.get('schema_version')}, "
            f"this one reads {SCHEMA_VERSION}). Fix: resume it with that version"
        )
    return RunIdentity.model_validate(found)


def read_config(folder: RunFolder) -> RunConfig:
    """The resolved config of a run."""
    return RunConfig.model_validate(json.loads(folder.config.read_text(encoding="utf-8")))


def config_digest(config: RunConfig) -> str:
    """sha256 of the resolved config."""
    text = json.dumps(config.model_dump(mode="json"), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def _drive(
    config: RunConfig, folder: RunFolder, observers: Sequence[Observer], *, resumed: bool
) -> RunSummary:
    claim(folder)
    events = EventLog(folder.events, observers)
    stop = StopRequest()
    events.emit(EventKind.RUN_STARTED, resumed=resumed, rounds=config.rounds, name=folder.path.name)
    tracker = make_tracker(config.tracking, folder, on_warning=events.warn)
    try:
        with (
            listening(stop),
            assemble(config, folder, events=events, tracker=tracker, stop=stop) as run,
            listening(stop),  # again: starting Ray puts its own handler on SIGTERM
        ):
            tracker.start(_tracked(run, resumed=resumed))
            record_what_was_missed(run)
            reason = run_rounds(run)
            results = tuple(run.journal.results())
    except KeyboardInterrupt:
        tracker.finish("KILLED", "interrupted")
        events.emit(EventKind.RUN_INTERRUPTED)
        raise
    except BaseException as error:
        tracker.finish("FAILED", str(error))
        kind = type(error).__name__
        events.emit(EventKind.RUN_FAILED, error=kind, message=str(error))
        if isinstance(error, PawlError):
            raise
        raise PawlError(f"{kind}: {error}") from error
    tracker.finish("FINISHED", reason)
    events.emit(EventKind.RUN_FINISHED, reason=reason)
    return RunSummary(results=results, reason=reason)


def _tracked(run: Run, *, resumed: bool) -> TrackedRun:
    identity = read_identity(run.folder)
    return tracked_run(
        run_id=identity.run_id,
        name=identity.name,
        experiment=identity.experiment,
        config=run.config.model_dump(mode="json"),
        config_digest=identity.config_digest,
        model_digest=run.store.get(0).digest,
        reference=run.config.training.reference.type,
        resumed=resumed,
    )


def claim(folder: RunFolder) -> None:
    """Write who drives the run now.

    Raises:
        ResumeError: another process of this machine does so and is alive.
    """
    try:
        before = json.loads(folder.driver.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        before = {}
    if before and before.get("host") == socket.gethostname() and _is_alive(before):
        raise ResumeError(
            f"{folder.path} is driven by process {before['pid']} on this machine. Fix: "
            f"wait for it, or stop it with `kill -INT {before['pid']}`"
        )
    write_json(
        folder.driver,
        {
            "pid": os.getpid(),
            "pid_started": process_start(os.getpid()),
            "host": socket.gethostname(),
        },
    )


def _is_alive(driver: dict[str, object]) -> bool:
    pid = driver.get("pid")
    return (
        isinstance(pid, int)
        and pid != os.getpid()
        and process_start(pid) == driver.get("pid_started") is not None
    )


def process_start(pid: int) -> int | None:
    """Start time of a process in clock ticks since boot, None when there is no such process (or no /proc)."""
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8") as handle:
            fields = handle.read().rpartition(")")[2].split()
        # A zombie has ended; only its parent has not taken notice.
        return None if fields[0] == "Z" else int(fields[19])
    except (OSError, ValueError, IndexError):
        return None
