"""`pawl ui`: MLflow's own server on the right store, reachable from this machine only, gone when we go."""

from __future__ import annotations

import importlib.util
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType

from orchestrator.config.files import load_config, resolve_tracking
from orchestrator.config.tracking_uri import SERVERS, absolute_uri, redact, sqlite_file
from orchestrator.runs.folder import open_run
from orchestrator.runs.state import read_config
from policies.base.errors import ConfigurationError, InputError

HOST = "127.0.0.1"
_DEFAULT = "sqlite:///mlflow.db"
_STOP_SECONDS = 10.0


def store_uri(target: str | None, cwd: Path) -> str:
    """The tracking URI of a run folder, of a config, or the default one.

    Raises:
        InputError: the SQLite file is not there.
    """
    if target is None:
        uri = absolute_uri(_DEFAULT, cwd)
    elif Path(target).is_dir():
        tracking = read_config(open_run(Path(target))).get("tracking") or {}
        uri = absolute_uri(str(tracking.get("uri", _DEFAULT)), cwd)
    else:
        uri = resolve_tracking(load_config(target).config, cwd).tracking.uri
    file = sqlite_file(uri)
    if file is not None and not file.is_file():
        raise InputError(
            f"no MLflow store at {file}. Fix: start a run first, or give its run folder: `pawl ui runs/NAME`"
        )
    return uri


def is_server(uri: str) -> bool:
    """Tell whether the store is a server already: it shows itself."""
    return uri.split(":", 1)[0] in SERVERS


def check_can_serve(port: int) -> None:
    """Refuse before a process is started.

    Raises:
        ConfigurationError: MLflow is not installed, or the port is taken.
    """
    if importlib.util.find_spec("mlflow") is None:
        raise ConfigurationError(
            "mlflow is not installed here. Fix: pip install 'pawl-lm[cpu]' (or [gpu]), or look "
            "at the run folder with `pawl show`"
        )
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except (OSError, OverflowError) as error:
            raise ConfigurationError(
                f"port {port} of {HOST} cannot be used ({error}). Set by: --port. Fix: give "
                f"another one, e.g. --port {port % 60000 + 1}"
            ) from None


def command(uri: str, port: int) -> list[str]:
    """Tell how MLflow's server is started."""
    options = ["--backend-store-uri", uri, "--host", HOST, "--port", str(port), "--workers", "1"]
    return [sys.executable, "-m", "mlflow", "server", *options]


def serve(uri: str, port: int, announce: Callable[[str], None]) -> int:
    """Run the server until it ends or we are told to stop; returns its exit code, 0 when we stopped it."""
    check_can_serve(port)
    environment = {**os.environ, "MLFLOW_DISABLE_TELEMETRY": "true"}
    # A session of its own: all its workers can then be ended together, and Ctrl-C reaches us alone.
    child = subprocess.Popen(command(uri, port), env=environment, start_new_session=True)
    previous = signal.signal(signal.SIGTERM, _as_interrupt)
    try:
        announce(f"http://{HOST}:{port}  ({redact(uri)}); Ctrl-C ends it")
        return child.wait()
    except KeyboardInterrupt:
        return 0
    finally:
        _end(child)
        signal.signal(signal.SIGTERM, previous)


def _as_interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _end(child: subprocess.Popen[bytes]) -> None:
    """End the server and its workers: politely, then not."""
    for how in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(child.pid, how)
        except ProcessLookupError:
            return
        try:
            child.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            continue
