"""Explains a tracking server that answers and takes nothing, and what to do about it.

Read from the texts and codes of MLflow's exceptions; MLflow is not imported.
"""

from __future__ import annotations

import re
import shlex
import sys
from pathlib import Path

from orchestrator.config.tracking_uri import redact, sqlite_file
from orchestrator.tracking.spool import TrackingAnswered
from orchestrator.tracking.sqlite_store import State, Store, revisions, store_problem
from policies.base.errors import TrackingError, explain

_STATUS = re.compile(r"failed with error code (\d{3})\b")
_SCHEMA = re.compile(r"out-of-date database schema \(found version (\w+)")
_STATUS_OF = {
    "UNAUTHENTICATED": 401,
    "CUSTOMER_UNAUTHORIZED": 401,
    "PERMISSION_DENIED": 403,
    "ENDPOINT_NOT_FOUND": 404,
    "REQUEST_LIMIT_EXCEEDED": 429,
}
_TLS = ("SSLError", "CERTIFICATE_VERIFY_FAILED", "certificate verify failed", "SSL:")
_UNKNOWN_HOST = (
    "NameResolutionError",
    "Failed to resolve",
    "Name or service not known",
    "Temporary failure in name resolution",
    "nodename nor servname",
)
_FILE = ("unable to open database file", "readonly database", "not a database", "malformed")


def told(error: BaseException, uri: str, *, experiment: str = "") -> TrackingError | None:
    """The error to tell in the place of `error`; None where nobody answered.

    Args:
        error: what MLflow raised, or the text that quotes it.
        uri: the tracking URI.
        experiment: of the run.
    """
    text, code = str(error), str(vars(error).get("error_code", ""))
    where = redact(uri, uri)
    status = int(match[1]) if (match := _STATUS.search(text)) else _STATUS_OF.get(code)
    if match := _SCHEMA.search(text):
        path = sqlite_file(uri)
        return TrackingAnswered(
            schema_problem(path, match[1]) if path is not None else _server_schema(uri, match[1])
        )
    if any(mark in text for mark in _TLS):
        return TrackingAnswered(
            explain(
                "the tracking server's certificate is not trusted, so nothing is sent to it",
                value=where,
                where="tracking.uri",
                fix="name the certificate of who signed it in MLFLOW_TRACKING_SERVER_CERT_PATH, or correct the address",
            )
        )
    if any(mark in text for mark in _UNKNOWN_HOST):
        return TrackingError(
            explain(
                "the tracking server's host name is not known (DNS)",
                value=where,
                where="tracking.uri",
                fix="correct the name, or see to the network; it is asked again meanwhile",
            )
        )
    if sqlite_file(uri) is not None and any(mark in text for mark in _FILE):
        return TrackingAnswered(
            explain(
                "the MLflow store cannot be written",
                value=str(sqlite_file(uri)),
                where="tracking.uri",
                fix=f"see to the file's rights and disk, or set another tracking.uri ({text.splitlines()[0][:150]})",
            )
        )
    return None if status is None else told_of_status(status, uri, experiment, text)


def told_of_status(
    status: int, uri: str, experiment: str = "", text: str = ""
) -> TrackingError | None:
    """The error for an HTTP status; None for one that refuses nothing (of 200, say)."""
    where = redact(uri, uri)
    if status == 401:
        return TrackingAnswered(
            explain(
                "the tracking server asks for other credentials (401)",
                value=where,
                where="tracking.uri and the environment",
                fix="set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN",
            )
        )
    if status in (403, 407):
        return TrackingAnswered(
            explain(
                f"the tracking server does not let this user in ({status})",
                value=where,
                where="tracking.uri, tracking.experiment and the environment",
                fix=f"ask for the right to write to experiment {experiment!r}, or set another tracking.experiment",
            )
        )
    if status in (404, 405, 410):
        return TrackingAnswered(
            explain(
                f"there is no MLflow at this address ({status})",
                value=where,
                where="tracking.uri",
                fix="give the address under which MLflow's own page opens, with its path if it has one",
            )
        )
    if status == 413:
        return TrackingAnswered(
            explain(
                "what is sent is too large for the tracking server, or for a proxy before it (413)",
                value=where,
                where="tracking.uri",
                fix="raise the proxy's limit (nginx: client_max_body_size), or set tracking.table_rows=8",
            )
        )
    if status == 429 or status >= 500:
        quoted = text.strip().splitlines()[0][:200] if text.strip() else ""
        return TrackingError(
            f"the tracking server answers with error {status} and is asked again ({quoted})"
        )
    return None


def deleted(uri: str, experiment: str, experiment_id: str) -> TrackingAnswered:
    """The error for an experiment that was deleted in MLflow and whose name is still taken by it."""
    restore = [sys.executable, "-m", "mlflow", "experiments", "restore", "-x", experiment_id]
    address = shlex.quote(redact(uri, uri))
    return TrackingAnswered(
        explain(
            f"the MLflow experiment was deleted (id {experiment_id}), and MLflow takes nothing for it",
            value=experiment,
            where="tracking.experiment",
            fix=f"restore it (`MLFLOW_TRACKING_URI={address} {shlex.join(restore)}`), or set "
            f"tracking.experiment={shlex.quote(experiment + '-2')}",
        )
    )


def schema_problem(path: Path, revision: str) -> str:
    """The words of `store_problem` for a store whose tables MLflow itself refused."""
    state: State = "older" if revision in revisions()[0] else "newer"
    return str(store_problem(path, Store(state, revision, empty=False)))


def _server_schema(uri: str, revision: str) -> str:
    return explain(
        f"the tracking database has the tables of another MLflow (revision {revision})",
        value=redact(uri, uri),
        where="tracking.uri",
        fix=f"make a backup, then `{shlex.quote(sys.executable)} -m mlflow db upgrade ADDRESS` with the address of the "
        "database, where its MLflow is the older one",
    )
