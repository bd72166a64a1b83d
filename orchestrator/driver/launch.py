"""Starting and resuming a run: the folder, the driver's claim on it, signals, and a truthful end."""

from __future__ import annotations

import logging
import uuid
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from typing import Literal

from orchestrator.config.number_formats import with_number_formats
from orchestrator.config.plug_ins.host import hosting
from orchestrator.config.remote_code import trusted_code
from orchestrator.config.run_config import RunConfig
from orchestrator.driver.assembly import assemble
from orchestrator.flow.stopping import StopRequest, listening
from orchestrator.plan.floors import check_floors
from orchestrator.rounds.context import Run
from orchestrator.rounds.loop import run_rounds
from orchestrator.rounds.recording import record_what_was_missed
from orchestrator.runs.events import EventKind, EventLog, Observer
from orchestrator.runs.folder import RunFolder
from orchestrator.runs.identity import SCHEMA_VERSION, RunIdentity, read_identity, write_identity
from orchestrator.runs.lease import Lease, claim
from orchestrator.runs.plug_in_changes import PlugIns, check_plug_ins, plug_ins_of
from orchestrator.runs.private import check_confined, private_files
from orchestrator.runs.refused_start import leaving_nothing
from orchestrator.runs.stored_config import (
    config_digest,
    read_config,
    sealed,
    settings_since,
    written_digest,
)
from orchestrator.storage.owner import check_place
from orchestrator.tracking.mlflow_client import make_tracker
from orchestrator.tracking.spool import TrackedRun
from orchestrator.tracking.tags import tracked_run, versions
from orchestrator.tracking.tracker import Tracker
from policies.base.errors import (
    ConfigurationError,
    LeaseError,
    PawlError,
    ResumeError,
    explain,
)
from policies.base.records import Record, RoundResult
from policies.storage import files

logger = logging.getLogger(__name__)


class RunSummary(Record):
    """The end of a run."""

    results: tuple[RoundResult, ...]
    reason: str


@private_files()
@files.disk_errors_told()
def run_experiment(
    config: RunConfig,
    folder: RunFolder,
    *,
    source: str,
    observers: Sequence[Observer] = (),
    or_resume: bool = False,
) -> RunSummary:
    """Start a new run in `folder` and drive it to its end.

    Args:
        config: of the run.
        folder: where it is written.
        source: the config as it was given.
        observers: told of each event.
        or_resume: another process that begins the same run now is a reason to try again later, not a wrong name.

    Raises:
        ConfigurationError: the folder holds a run already, or its place in the bucket belongs to another.
        PawlError: the run failed; what finished stays and can be resumed.
        InterruptedRun: it was asked to stop.
    """
    check_floors()
    config = with_number_formats(config)
    _check_new(folder)
    check_place(config.storage, folder)
    with leaving_nothing(folder) as start:
        files.make_directory(folder.path)
        with _first_claim(folder, or_resume=or_resume) as lease, hosting():
            start.fence = lease.fence
            with lease.fence.holding():
                _check_new(folder)  # another process may have begun and ended it since
                _describe(config, folder, source)
            held = PlugIns(read_identity(folder).plug_ins)
            return _drive(config, folder, observers, lease, held, resumed=False)


def _check_new(folder: RunFolder) -> None:
    if folder.identity.exists():
        raise ConfigurationError(
            explain(
                "the folder holds a run already",
                value=str(folder.path),
                where="--name",
                fix=f"choose another name, or go on with `pawl resume {folder.path}`",
            )
        )


@contextmanager
def _first_claim(folder: RunFolder, *, or_resume: bool) -> Iterator[Lease]:
    """The claim on a run that begins.

    Raises:
        ConfigurationError: another process begins a run of this name now: the name is taken.
    """
    with ExitStack() as stack:
        try:
            lease = stack.enter_context(claim(folder))
        except LeaseError as error:
            if or_resume:
                raise
            raise ConfigurationError(
                explain(
                    f"another process is starting a run of this name: {str(error).partition(' Fix: ')[0]}",
                    value=str(folder.path),
                    where="--name",
                    fix="choose another name, or leave --name out, which takes the next free one",
                )
            ) from error
        yield lease


def _describe(config: RunConfig, folder: RunFolder, source: str) -> None:
    """Write what the run is. `run.json` comes last: with it the folder is a run, and is resumed."""
    files.write_json(folder.config, sealed(config))
    files.write_text(folder.config_source, source)
    created_at = datetime.now(UTC)
    identity = RunIdentity(
        schema_version=SCHEMA_VERSION,
        run_id=uuid.uuid4().hex,
        name=folder.path.name,
        experiment=config.tracking.experiment,
        created_at=created_at.isoformat(),
        config_digest=config_digest(config),
        versions=versions(),
        remote_code=trusted_code(config),
        plug_ins=plug_ins_of(config),
        template_date=config.rollout.template_date or created_at.date().isoformat(),
    )
    write_identity(folder, identity)


@private_files()
@files.disk_errors_told()
def resume_experiment(
    folder: RunFolder, observers: Sequence[Observer] = (), *, accept_changes: bool = False
) -> RunSummary:
    """Go on with the run in `folder` from its last finished phase or shard.

    With `accept_changes`, plug-ins that were edited meanwhile hold from here on, which is recorded.

    Raises:
        PlugInChangedError: a plug-in is not what it was, and `accept_changes` is not given.
        ResumeError: it is not a run, is driven by another process now, or its config was edited.
    """
    check_floors()
    check_confined(folder.path)
    identity = read_identity(folder)
    config = read_config(folder)
    if trusted_code(config) != identity.remote_code:
        raise ResumeError(
            "the Python code of the model is not the code that the run began with. Set by: policy.model and "
            "trust_remote_code. Fix: restore it, or read it and start a new run"
        )
    if written_digest(folder) != identity.config_digest:
        raise ResumeError(
            f"{folder.config} was edited since the run began: its digest is not that "
            "of run.json. Fix: undo the edit, or start a new run"
        )
    warnings: list[str] = []
    if since := settings_since(folder, config):
        warnings.append(
            f"the run was begun by an older version (pawl-lm {identity.versions.get('pawl-lm', '?')}) without "
            f"{len(since)} of today's settings; their defaults hold from here on: {', '.join(since)}"
        )
    with claim(folder, on_takeover=warnings.append) as lease, hosting():
        held = check_plug_ins(
            folder, config, identity.plug_ins, accept=accept_changes, warn=warnings.append
        )
        return _drive(config, folder, observers, lease, held, warnings, resumed=True)


def _drive(
    config: RunConfig,
    folder: RunFolder,
    observers: Sequence[Observer],
    lease: Lease,
    held: PlugIns,
    warnings: Sequence[str] = (),
    *,
    resumed: bool,
) -> RunSummary:
    events = EventLog(folder.events, observers)
    stop = StopRequest()
    events.emit(
        EventKind.RUN_STARTED,
        resumed=resumed,
        rounds=config.rounds,
        name=folder.path.name,
        epoch=lease.claim.epoch,
        run=read_identity(folder).run_id,
    )
    for message in warnings:
        events.warn(message)
    tracker = make_tracker(config.tracking, folder, on_warning=events.warn)
    try:
        with (
            listening(stop),
            assemble(
                config,
                folder,
                fence=lease.fence,
                events=events,
                tracker=tracker,
                stop=stop,
                plug_ins=held,
            ) as run,
            listening(stop),  # again: starting Ray puts its own handler on SIGTERM
        ):
            tracker.start(_tracked(run, resumed=resumed))
            record_what_was_missed(run)
            reason = run_rounds(run)
            results = tuple(run.journal.results())
    except KeyboardInterrupt:
        _tell(tracker, "KILLED", "interrupted")
        events.emit(EventKind.RUN_INTERRUPTED)
        raise
    except BaseException as error:
        _tell(tracker, "FAILED", str(error))
        kind = type(error).__name__
        events.emit(EventKind.RUN_FAILED, error=kind, message=str(error))
        if isinstance(error, PawlError):
            raise
        disk = isinstance(error, OSError) and files.storage_error(
            error, error.filename or folder.path
        )
        raise disk or PawlError(f"{kind}: {error}") from error
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


def _tell(tracker: Tracker, status: Literal["KILLED", "FAILED"], message: str) -> None:
    """Tell the tracker how the run ended, without hiding why: a full disk refuses this too."""
    try:
        tracker.finish(status, message)
    except (OSError, PawlError) as error:
        logger.warning("the tracker could not be told that the run ended: %s", error)
