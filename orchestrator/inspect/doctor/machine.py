"""Examines if a config can run here and now: the preflight, and what has to answer, hold or be large enough."""

from __future__ import annotations

import contextlib
import os
import resource
import shutil
import socket
import sqlite3
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path

from orchestrator.config.run_config import RunConfig
from orchestrator.config.tracking_uri import redact, sqlite_file
from orchestrator.inspect.doctor.diagnosis import Diagnosis, Finding
from orchestrator.plan.sizes import memory_text
from policies.base.errors import PawlError
from policies.storage import files
from workers.cluster.machine import existing_parent

_OPEN_FILES = 4096
_SHARED_MEMORY = 10**9
_SLOW_FSYNC_SECONDS = 0.25
_ANSWER_SECONDS = 5.0


def examine_machine(target: str, overrides: Sequence[str]) -> Diagnosis:
    """Plan the config, and try everything that the plan only names. Nothing is started or left behind.

    Raises:
        ConfigurationError: the config is refused as it stands.
    """
    from orchestrator.config.files import load_config, resolve_tracking
    from orchestrator.config.plug_ins.host import hosting
    from orchestrator.plan.preflight import make_plan

    runs = Path("runs").absolute()
    with hosting():
        config = resolve_tracking(load_config(target, overrides).config, Path.cwd())
        plan = make_plan(config, run_folder=runs / "doctor")
    findings = [
        Finding(
            "problem" if line.verdict == "problem" else "warning", line.what, *_split(line.found)
        )
        for line in plan.lines
        if line.verdict != "ok"
    ]
    findings += _packages(config)
    findings += _limits(config)
    findings += _folder(runs)
    findings += _sandbox(config)
    findings += _ray(config)
    findings += _tracking(config)
    summary = f"config {target} on {socket.gethostname()}: {len(plan.lines)} lines of preflight"
    return Diagnosis(target, summary, findings)


def _split(found: str) -> tuple[str, str]:
    """A line of the plan as evidence and fix."""
    evidence, _, fix = found.partition(" Fix: ")
    return evidence.rstrip(), fix or "see `pawl plan`"


def _packages(config: RunConfig) -> Iterator[Finding]:
    wanted = set() if config.cluster.backend == "inline" else {"ray"}
    wanted |= {package for each in config.components for package in each.needs.packages}
    if config.tracking.enabled:
        wanted.add("mlflow")
    missing = sorted(name for name in wanted if find_spec(name) is None)
    if missing:
        yield Finding(
            "problem",
            "packages of a run are not installed here",
            ", ".join(missing),
            "bash scripts/install, or pip install 'pawl-lm[cpu]' (or [gpu])",
        )


def _limits(config: RunConfig) -> Iterator[Finding]:
    if config.cluster.backend == "inline":
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < _OPEN_FILES:
        yield Finding(
            "warning",
            "few open files are allowed",
            f"RLIMIT_NOFILE is {soft} (at most {hard}); Ray and MLflow want {_OPEN_FILES}",
            f"ulimit -n {_OPEN_FILES}; for a service LimitNOFILE={_OPEN_FILES}",
        )
    shared = Path("/dev/shm")  # nosec B108 # only asked how full it is
    if config.cluster.address is None and shared.is_dir():
        free = shutil.disk_usage(shared).free
        if free < _SHARED_MEMORY:
            yield Finding(
                "warning",
                "little shared memory",
                f"{shared} has {memory_text(free)} free; Ray's object store falls back to files, which is slow",
                "give the container more: docker run --shm-size=2g, or an emptyDir with medium: Memory",
            )


def _folder(runs: Path) -> Iterator[Finding]:
    """Write, fsync and rename where run folders would lie."""
    parent = existing_parent(runs)
    try:
        with tempfile.TemporaryDirectory(prefix=".pawl-doctor-", dir=parent) as scratch:
            started = time.monotonic()
            files.write_text(Path(scratch) / "a", "x" * 4096)
            seconds = time.monotonic() - started
    except (OSError, PawlError) as error:
        yield Finding(
            "problem",
            "run folders cannot be written",
            f"{parent}: {error}",
            "give another --runs-dir",
        )
        return
    if seconds > _SLOW_FSYNC_SECONDS:
        yield Finding(
            "warning",
            "the disk of the run folders is slow",
            f"writing 4 kB durably in {parent} took {seconds:.2f} s",
            "put run folders on a local disk; every finished shard waits for it",
        )


def _sandbox(config: RunConfig) -> Iterator[Finding]:
    """Start a sandbox with the settings of each component that has one, and attack it."""
    from workers.sandbox.probe import choose_plan
    from workers.sandbox.settings import SandboxSettings

    tried: list[SandboxSettings] = []
    for each in config.components:
        user, asked = each.component, each.needs.sandbox
        if asked is None or (settings := SandboxSettings.model_validate(asked)) in tried:
            continue
        tried.append(settings)
        try:
            choose_plan(settings)
        except PawlError as error:
            yield Finding(
                "problem",
                f"{user.type}: model-written code cannot be contained on this machine",
                *_split(str(error)),
            )


def _ray(config: RunConfig) -> Iterator[Finding]:
    address = config.cluster.address
    if config.cluster.backend == "inline" or address is None:
        return
    host, _, port = (
        os.environ.get("RAY_ADDRESS", "") if address == "auto" else address
    ).rpartition(":")
    if not (host and port.isdecimal()):
        return  # `auto` asks Ray's own file on this machine
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=_ANSWER_SECONDS).close()
    except OSError as error:
        yield Finding(
            "problem",
            "the Ray cluster does not answer",
            f"{host}:{port}: {error}",
            "check that it runs (`ray status`), and cluster.address",
        )


def _tracking(config: RunConfig) -> Iterator[Finding]:
    if not config.tracking.enabled:
        return
    uri = config.tracking.uri
    path = sqlite_file(uri)
    if path is not None:
        yield from _sqlite(path.absolute())
    elif uri.partition("://")[0] in ("http", "https"):
        try:
            # The scheme was looked at above.
            with urllib.request.urlopen(  # nosec B310 # http or https
                f"{uri.rstrip('/')}/health", timeout=_ANSWER_SECONDS
            ):
                return
        except urllib.error.HTTPError as error:
            problem = f"it answers {error.code} {error.reason}"
        except (OSError, ValueError) as error:
            problem = str(error)
        yield Finding(
            "warning",
            "the tracking server does not answer",
            f"{redact(uri, uri)}: {redact(problem, uri)}",
            "start it, or correct tracking.uri; a run goes on without it and sends its metrics later",
        )


def _sqlite(path: Path) -> Iterator[Finding]:
    if not path.exists():
        return
    try:
        with contextlib.closing(sqlite3.connect(path, timeout=1.0)) as store:
            store.execute("BEGIN IMMEDIATE")
            store.rollback()
    except sqlite3.Error as error:
        yield Finding(
            "warning",
            "the tracking database cannot be written now",
            f"{path}: {error}",
            "find who holds it (`fuser`); a run goes on and sends its metrics later",
        )
