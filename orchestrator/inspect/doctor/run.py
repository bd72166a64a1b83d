"""Examines why a run is stuck or has failed: its events, its driver, its workers, its disk, and what it left behind."""

from __future__ import annotations

import json
import re
import shutil
import time
from collections.abc import Iterator, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from orchestrator.inspect.doctor.diagnosis import Diagnosis, Finding
from orchestrator.inspect.doctor.ray_logs import tails_of
from orchestrator.plan.sizes import memory_text
from orchestrator.plan.tracking import trouble
from orchestrator.rounds.disk import bytes_of_a_round
from orchestrator.runs.events import Event, EventKind
from orchestrator.runs.folder import RunFolder
from orchestrator.runs.identity import read_identity
from orchestrator.runs.lease import MISSED_BEATS, Claim, is_visible, latest_claim, seconds_silent
from orchestrator.runs.reader import read_entries, read_sound
from orchestrator.runs.state import read_run_events, run_state
from orchestrator.runs.stored_config import read_config as load_run_config
from orchestrator.runs.stored_config import written_digest
from orchestrator.runs.worker_activity import STALE_SECONDS, activity_lines, read_activity
from orchestrator.tracking.spool import Spool
from policies.base.errors import PawlError
from policies.base.plain_text import duration, one_line

_PROCESS = re.compile(r"\bprocess (\d+)\b")
_QUIET_SHARE = 0.25
"""A worker that is quiet for this share of the silence timeout is worth a word."""
_MANY_STARTS = 3
_CHILDREN = (
    "workers.verify.child",
    "workers.verify.mathematics.symbolic_child",
    "workers.rollout.function_tool.child",
    "workers.sandbox",
)


def examine_run(folder: RunFolder) -> Diagnosis:
    """Everything that can be told from the folder, and from this machine, about a run."""
    events = read_run_events(folder)
    state = run_state(folder, events)
    findings = [*_state_of_files(folder)]
    findings += _ending(folder, events, state)
    findings += _driver(folder, events, state)
    if state == "running":
        findings += _workers(folder)
    findings += _crash_loop(folder, events)
    findings += _disk(folder, state)
    findings += _tracking(folder, state)
    findings += _quarantine(folder)
    findings += _orphans(state)
    last = events[-1] if events else None
    said = "no event yet" if last is None else f"last event: {_said(last)}"
    return Diagnosis(str(folder.path), f"run {folder.path.name} is {state}; {said}", findings)


def _said(event: Event) -> str:
    where = f" round {event.round}" if event.round is not None else ""
    where += f" {event.phase}" if event.phase else ""
    return f"{event.kind.value}{where}, {duration(max(0.0, _age(event.at)))} ago"


def _age(at: str) -> float:
    try:
        return time.time() - datetime.fromisoformat(at).timestamp()
    except ValueError:
        return 0.0


def _state_of_files(folder: RunFolder) -> Iterator[Finding]:
    """Yield what a resume would refuse."""
    try:
        read_entries(folder)
        identity = read_identity(folder)
        load_run_config(folder)
        if written_digest(folder) != identity.config_digest:
            yield Finding(
                "problem",
                "the config of the run was edited",
                f"{folder.config} does not have the digest that {folder.identity.name} names",
                "undo the edit, or start a new run",
            )
    except (PawlError, ValueError, OSError) as error:
        yield Finding(
            "problem",
            "the state of the run cannot be read",
            one_line(error, 400),
            f"restore the file from a copy; `pawl verify {folder.path}` names every damaged file",
        )


def _ending(folder: RunFolder, events: Sequence[Event], state: str) -> Iterator[Finding]:
    if state == "failed":
        failed = next(e for e in reversed(events) if e.kind is EventKind.RUN_FAILED)
        during = next((e for e in reversed(events) if e.phase is not None), None)
        where = f" in round {during.round}, {during.phase}" if during is not None else ""
        message = str(failed.detail.get("message", ""))
        yield Finding(
            "problem",
            f"the run failed{where}: {failed.detail.get('error', '?')}",
            "; ".join([one_line(message, 600), *tails_of(_processes(message))]),
            _fix_in(message) or f"mend the cause, then `pawl resume {folder.path}`",
        )
    if state == "interrupted":
        told = any(e.kind is EventKind.RUN_INTERRUPTED for e in events[-1:])
        yield Finding(
            "warning" if told else "problem",
            "the run was stopped on request" if told else "the driver died without a word",
            _said(events[-1]) if events else "it had not begun",
            f"`pawl resume {folder.path}`"
            + (
                ""
                if told
                else "; with --supervise it is resumed by itself. Killed by the kernel's memory killer? `dmesg` tells"
            ),
        )


def _processes(message: str) -> list[int]:
    return [int(number) for number in dict.fromkeys(_PROCESS.findall(message))][:3]


def _fix_in(message: str) -> str:
    """The way out that an error's own message names."""
    return one_line(message.rpartition("Fix: ")[2], 300) if "Fix: " in message else ""


def _driver(folder: RunFolder, events: Sequence[Event], state: str) -> Iterator[Finding]:
    """A driver that is there and does nothing, or that cannot be seen from here."""
    claim = latest_claim(folder)
    if state != "running" or claim is None:
        return
    beat = seconds_silent(claim)
    late = 5.0 * MISSED_BEATS + 1.0
    if claim.heartbeat and beat > late:
        yield Finding(
            "problem",
            "the driver's heartbeat stands still",
            f"process {claim.pid} on {claim.host} was last heard of {duration(beat)} ago",
            _look_at(claim) + "; if it is gone, resume: another driver takes the run over",
        )
    activity = read_activity(folder)
    now = next((e for e in reversed(events) if e.kind is EventKind.PHASE_STARTED), None)
    if activity and activity["calls"] and activity["age_seconds"] > 4 * STALE_SECONDS:
        yield Finding(
            "warning",
            "the driver has not looked at its workers for a while",
            f"for {duration(activity['age_seconds'])}, {'' if now is None else _said(now)}",
            _look_at(claim),
        )


def _look_at(claim: Claim) -> str:
    if is_visible(claim):
        return f"look at process {claim.pid} (`py-spy dump --pid {claim.pid}` shows what it does)"
    return f"look at process {claim.pid} on {claim.host}"


def _workers(folder: RunFolder) -> Iterator[Finding]:
    """Yield which worker is silent, and which call has nowhere to run."""
    activity = read_activity(folder)
    if activity is None:
        return
    settings = read_sound(folder).config.get("cluster") or {}
    limit = float(settings.get("silence_timeout_seconds", 600.0))
    age = float(activity["age_seconds"])
    for row in activity["calls"]:
        line = activity_lines({**activity, "calls": [row]})[0]
        quiet = row.get("quiet_seconds")
        if quiet is not None and quiet + age > limit * _QUIET_SHARE:
            process = str(row.get("process") or "").rpartition(":")[2]
            yield Finding(
                "warning",
                f"{row['worker']} gives no sign of life",
                "; ".join([line, *tails_of([int(process)] if process.isdecimal() else [])]),
                f"it is ended after {limit:g} s (cluster.silence_timeout_seconds) and its work handed out again; "
                "look at its log in Ray's session folder meanwhile",
            )
        elif not row.get("running") and row["seconds"] + age > limit * _QUIET_SHARE:
            yield Finding(
                "warning",
                f"{row['worker']} has not been able to start a call",
                line,
                "`ray status` shows what the cluster lacks; the wait ends after cluster.start_timeout_seconds",
            )


def _crash_loop(folder: RunFolder, events: Sequence[Event]) -> Iterator[Finding]:
    starts = 0
    for event in reversed(events):
        if event.kind is EventKind.PHASE_FINISHED:
            break
        starts += event.kind is EventKind.RUN_STARTED
    if starts >= _MANY_STARTS:
        yield Finding(
            "problem",
            f"the last {starts} drivers finished no phase",
            next((_said(e) for e in reversed(events)), ""),
            f"start it once in the foreground and watch: `pawl --debug resume {folder.path}`",
        )


def _disk(folder: RunFolder, state: str) -> Iterator[Finding]:
    if state == "finished":
        return
    index = max(folder.rounds(), default=0)
    free, need = shutil.disk_usage(folder.path).free, bytes_of_a_round(folder, index)
    if free < need:
        yield Finding(
            "problem",
            "the disk is nearly full",
            f"{memory_text(free)} free, a round writes about {memory_text(need)}",
            "make room; a new run with `retention` keeps less",
        )


def _tracking(folder: RunFolder, state: str) -> Iterator[Finding]:
    if state == "running" or not folder.tracking.is_dir():
        return
    left = Spool(folder.tracking, writes=False).left()
    if left:
        cause = _tracking_trouble(folder)
        first = "mend that" if cause else "bring the tracking server back"
        yield Finding(
            "warning",
            f"{left} tracking entries have not been sent",
            f"they are kept in {folder.tracking}{f'; {cause}' if cause else ''}",
            f"{first}, then `pawl resume {folder.path}` sends them",
        )


def _tracking_trouble(folder: RunFolder) -> str:
    """Say why the store would take nothing now; empty where it would, or where the config cannot be read."""
    try:
        found = trouble(load_run_config(folder).tracking)
    except PawlError:
        return ""
    return "" if found is None else str(found)


def _quarantine(folder: RunFolder) -> Iterator[Finding]:
    reasons = sorted(folder.quarantine.rglob("*.reason.json")) if folder.quarantine.is_dir() else []
    if reasons:
        shown = [f"{path.name}: {one_line(_why(path), 160)}" for path in reasons[:3]]
        yield Finding(
            "warning",
            f"{len(reasons)} items are in quarantine",
            "; ".join(shown),
            f"look at {folder.quarantine}; the run goes on without them",
        )


def _why(path: Path) -> str:
    try:
        facts: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return str(facts.get("item") or facts.get("file")) + " " + str(facts.get("why", ""))
    except (OSError, ValueError, AttributeError):
        return "its reason cannot be read"


def _orphans(state: str) -> Iterator[Finding]:
    """Children of workers that outlived them: they end by themselves, unless the kernel does not let them."""
    if state == "running":
        return
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            command = (path / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            parent = (path / "stat").read_text(encoding="utf-8").rpartition(")")[2].split()[1]
        except (OSError, IndexError):  # it ended while we looked, or is not ours to see
            continue
        if parent == "1" and any(f"-m {name}" in command for name in _CHILDREN):
            found.append(f"{path.name} ({one_line(command, 80)})")
    if found:
        yield Finding(
            "warning",
            f"{len(found)} processes of verifiers, tools or sandboxes have outlived their workers",
            "; ".join(found[:5]),
            "kill " + " ".join(entry.split()[0] for entry in found),
        )
