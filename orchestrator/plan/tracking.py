"""The part of the preflight that looks at the tracking store: whether what a run will send there would be taken."""

from __future__ import annotations

import base64
import json
import os
import sqlite3
import ssl
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path

from orchestrator.config.run_config import RunConfig
from orchestrator.config.sections import TrackingSettings
from orchestrator.config.tracking_uri import SERVERS, absolute_uri, redact, sqlite_file
from orchestrator.plan.lines import Plan
from orchestrator.tracking.refusals import deleted, told, told_of_status
from orchestrator.tracking.spool import TrackingAnswered
from orchestrator.tracking.sqlite_store import deleted_experiment, look, store_problem
from policies.base.errors import TrackingError

LOOK_SECONDS = 5.0
"""Longest wait for a tracking server that is only looked at."""
_BYTES = 1 << 20
_ASK = "/api/2.0/mlflow/experiments/get-by-name?experiment_name="


def plan_tracking(config: RunConfig, plan: Plan, *, elsewhere: bool) -> None:
    """Add what the tracking store would answer: a problem where it would refuse, a warning where nobody answers.

    A run goes on without its server, and sends everything when it is back; a refusal does not go away by itself.
    """
    if not config.tracking.enabled or elsewhere:
        return
    found = trouble(config.tracking)
    if isinstance(found, TrackingAnswered):
        plan.add("tracking", str(found), "problem")
    elif found is not None:
        later = "the run goes on without it and sends everything later"
        plan.add("tracking", f"{found}; {later}", "warning")


def trouble(settings: TrackingSettings) -> TrackingError | None:
    """The error that sending to the tracking store would meet now; `TrackingAnswered` where it would be refused."""
    uri = absolute_uri(settings.uri)
    try:
        file = sqlite_file(uri)
        if file is not None:
            _look_at_file(file, uri, settings.experiment)
        elif urllib.parse.urlsplit(uri).scheme in SERVERS:
            _ask_server(uri, settings.experiment, min(LOOK_SECONDS, settings.timeout_seconds))
    except TrackingError as error:
        return error
    except sqlite3.Error as error:
        return TrackingError(redact(f"the MLflow store cannot be read now: {error}", uri))
    return None


def _look_at_file(file: Path, uri: str, experiment: str) -> None:
    found = look(file)
    if problem := store_problem(file, found):
        raise TrackingAnswered(problem)
    if found.state == "whole" and (number := deleted_experiment(file, experiment)) is not None:
        raise deleted(uri, experiment, number)


def _ask_server(uri: str, experiment: str, timeout: float) -> None:
    """Ask for the run's experiment, as MLflow's client will.

    Raises:
        TrackingAnswered: it would not be taken.
        TrackingError: nobody answers, or with an error that may pass.
    """
    status, text = _get(uri, urllib.parse.quote(experiment, safe=""), timeout)
    try:
        found = json.loads(text)
    except ValueError:
        found = {}
    found = found if isinstance(found, dict) else {}
    if status in (400, 404) and "error_code" in found:
        return  # MLflow itself answers: there is no such experiment yet
    problem = told_of_status(status, uri, experiment, text)
    if problem is not None:
        raise problem
    own = found.get("experiment")
    if not isinstance(own, dict):
        raise TrackingAnswered(str(told_of_status(404, uri)))  # a page, but not MLflow's
    if own.get("lifecycle_stage") == "deleted":
        raise deleted(uri, experiment, str(own.get("experiment_id")))


def _get(uri: str, experiment: str, timeout: float) -> tuple[int, str]:
    parts = urllib.parse.urlsplit(uri)
    host = parts.netloc.rpartition("@")[2]
    address = f"{parts.scheme}://{host}{parts.path.rstrip('/')}{_ASK}{experiment}"
    request = urllib.request.Request(address, headers=_credentials(parts))
    try:
        with urllib.request.urlopen(  # nosec B310 # http or https: checked by the caller
            request, timeout=timeout, context=_trust() if parts.scheme == "https" else None
        ) as answer:
            return int(answer.status), answer.read(_BYTES).decode(errors="replace")
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read(_BYTES).decode(errors="replace")
    except (OSError, ValueError) as error:
        plain = f"the tracking server at {redact(uri, uri)} does not answer: {error}"
        raise (told(error, uri) or TrackingError(plain)) from None


def _credentials(parts: urllib.parse.SplitResult) -> dict[str, str]:
    """The header that MLflow's client sends: its variables in its order."""
    name = parts.username or os.environ.get("MLFLOW_TRACKING_USERNAME")
    password = parts.password or os.environ.get("MLFLOW_TRACKING_PASSWORD")
    token = os.environ.get("MLFLOW_TRACKING_TOKEN")
    if name and password:
        unquoted = f"{urllib.parse.unquote(name)}:{urllib.parse.unquote(password)}"
        return {"Authorization": f"Basic {base64.b64encode(unquoted.encode()).decode()}"}
    return {"Authorization": f"Bearer {token}"} if token else {}


def _trust() -> ssl.SSLContext:
    """As the environment tells MLflow's client."""
    if os.environ.get("MLFLOW_TRACKING_INSECURE_TLS", "").lower() in ("1", "true"):
        return ssl._create_unverified_context()  # nosec B323 # the user's own setting, for MLflow too
    return ssl.create_default_context(cafile=os.environ.get("MLFLOW_TRACKING_SERVER_CERT_PATH"))
