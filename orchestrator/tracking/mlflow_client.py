"""MLflow: the only module that imports it, and only once something is sent.

    driver -> Tracker -> spool.jsonl -> SendingThread -> LineSender -> MlflowSink -> server

The driver's calls end when their line is on disk. Everything to the right of the spool may be slow, refuse,
or be away; the run folder has the truth either way.
"""

from __future__ import annotations

import json
import logging
import math
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from hashlib import sha256
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from orchestrator.config.tracking_uri import (
    SERVERS,
    absolute_uri,
    artifact_root,
    check_uri,
    redact,
    sqlite_file,
)
from orchestrator.runs.folder import RunFolder
from orchestrator.runs.tables import Row, columns_of
from orchestrator.tracking.metric_names import clean_tags
from orchestrator.tracking.push import LineSender, Point, TrackingSink, Warn
from orchestrator.tracking.refusals import deleted, told
from orchestrator.tracking.spool import (
    EndStatus,
    SendLock,
    Spool,
    TrackedRun,
    TrackingAnswered,
    TrackingRefused,
)
from orchestrator.tracking.sqlite_store import ensure_store
from orchestrator.tracking.tracker import NullTracker, SpooledTracker, Tracker
from policies.base.errors import TrackingError, boundary
from policies.base.records import PolicyVersion
from policies.storage.artifacts import write_json
from policies.storage.checksums import SEAL, read_sealed, with_seal
from policies.storage.policy_store import MANIFEST

if TYPE_CHECKING:
    from mlflow.entities import Param

    from orchestrator.config.sections import TrackingSettings

logger = logging.getLogger(__name__)

_EXISTS = "RESOURCE_ALREADY_EXISTS"

__all__ = ["MlflowSink", "NullTracker", "TrackedRun", "Tracker", "make_tracker", "push_backlog"]


def make_tracker(settings: TrackingSettings, folder: RunFolder, *, on_warning: Warn) -> Tracker:
    """The tracker that a config asks for. `on_warning` is also called from the sending thread.

    Raises:
        ConfigurationError: metrics cannot be sent to `tracking.uri`.
    """
    if not settings.enabled:
        return NullTracker(folder, on_warning=on_warning)
    return SpooledTracker(
        folder,
        _connector(settings, folder, on_warning),
        where=redact(settings.uri, settings.uri),
        table_rows=settings.table_rows,
        register_policy=settings.register_policy,
        on_warning=on_warning,
        max_backlog_bytes=round(settings.max_backlog_mb * 1e6),
    )


def _connector(
    settings: TrackingSettings, folder: RunFolder, warn: Warn
) -> Callable[[], TrackingSink]:
    uri = absolute_uri(check_uri(settings.uri))
    return lambda: MlflowSink(uri, folder.tracking, timeout=settings.timeout_seconds, warn=warn)


def push_backlog(folder: RunFolder, settings: TrackingSettings, *, on_warning: Warn) -> int:
    """Send what a run has left behind, and return how many entries that were.

    Raises:
        TrackingError: the server does not answer, or the run's own process is sending.
    """
    if not folder.tracking.is_dir():
        return 0
    lock = SendLock(folder.tracking)
    if not lock.acquire():
        raise TrackingError(f"{folder.path} is being sent by another process. Fix: let it finish")
    try:
        spool = Spool(folder.tracking, writes=False)
        sender = LineSender(
            folder,
            spool,
            _connector(settings, folder, on_warning),
            table_rows=settings.table_rows,
            warn=on_warning,
        )
        return sender.send_all()
    finally:
        lock.release()


class MlflowSink:
    """Real MLflow. Runs are found by id or by tag before they are made, so repeating a call makes no second one."""

    _FINAL = frozenset(
        {"INVALID_PARAMETER_VALUE", "RESOURCE_DOES_NOT_EXIST", "BAD_REQUEST", "INVALID_STATE"}
    )
    """Answers that will not change when asked again."""

    def __init__(
        self, uri: str, folder: Path, *, timeout: float, warn: Warn = logger.warning
    ) -> None:
        self._uri = uri
        self._warn = warn
        self._ids_path = folder / "runs.json"
        self._run: TrackedRun | None = None
        with self._answers():
            _quiet_environment(timeout)
            if (file := sqlite_file(uri)) is not None:
                ensure_store(file, partial(_make_store, root=artifact_root(uri)), warn)
            from mlflow.tracking import MlflowClient

            for name in ("mlflow", "alembic"):
                logging.getLogger(name).setLevel(logging.CRITICAL)
            self._client = MlflowClient(tracking_uri=uri, registry_uri=uri)
        self._ids = self._known_ids()

    def open_run(self, run: TrackedRun, at: int) -> None:
        try:
            with self._answers():
                self._run = run
                self._ids["experiment"] = self._experiment(run.experiment)
                tags = {**run.tags, "pawl.run_id": run.run_id}
                filter_string = f"tags.`pawl.run_id` = '{run.run_id}'"
                run_id = self._find_or_create("parent", filter_string, run.name, tags, at)
                self._set_tags(run_id, tags)
                self._begin(run_id, run.params)
        except TrackingRefused as error:  # without the run nothing can be sent: worth asking again
            raise TrackingAnswered(str(error)) from None

    def open_round(self, round_index: int, tags: Mapping[str, str], start: int) -> None:
        with self._answers():
            parent = self._id(None)
            own = {
                **clean_tags(tags),
                "mlflow.parentRunId": parent,
                "pawl.round": str(round_index),
            }
            filter_string = (
                f"tags.`mlflow.parentRunId` = '{parent}' and tags.`pawl.round` = '{round_index}'"
            )
            name = f"round {round_index}"
            run_id = self._find_or_create(str(round_index), filter_string, name, own, start)
            self._set_tags(run_id, own)

    def metrics(self, round_index: int | None, points: Sequence[Point]) -> None:
        from mlflow.entities import Metric

        with self._answers():
            values = [Metric(p.name, p.value, p.at, p.step) for p in points]
            self._client.log_batch(self._id(round_index), metrics=values)

    def table(self, round_index: int, name: str, rows: Sequence[Row]) -> None:
        """As `MlflowClient.log_table` leaves it; that one appends to a table that is there, which a repeat must not."""
        columns = columns_of(rows)
        text = json.dumps(
            {"columns": list(columns), "data": list(zip(*columns.values(), strict=True))},
            ensure_ascii=False,
        )
        with self._answers():
            run_id = self._id(round_index)
            self._client.log_text(run_id, text, name)
            tables = json.loads(
                self._client.get_run(run_id).data.tags.get("mlflow.loggedArtifacts", "[]")
            )
            entry = {"path": name, "type": "table"}
            if entry not in tables:
                self._client.set_tag(run_id, "mlflow.loggedArtifacts", json.dumps([*tables, entry]))

    def artifact(self, path: Path, name: str) -> None:
        target = PurePosixPath(name)
        parent = str(target.parent) if target.parent.name else None
        with self._answers(), tempfile.TemporaryDirectory() as scratch:
            if path.name != target.name:
                path = Path(shutil.copyfile(path, Path(scratch) / target.name))
            self._client.log_artifact(self._id(None), str(path), parent)

    def register(self, round_index: int, policy: PolicyVersion) -> None:
        """A server refuses paths outside its store: there the manifest is uploaded and names where the weights are."""
        assert self._run is not None
        name = re.sub(r"[^\w .-]", "_", self._run.experiment)
        tags = {
            "pawl.digest": policy.digest,
            "pawl.round": str(policy.round),
            "pawl.parent": str(policy.parent),
            "pawl.path": policy.path,
        }
        with self._answers():
            run_id = self._id(round_index)
            self._registered_model(name)
            if self._client.search_model_versions(f"name = '{name}' and run_id = '{run_id}'"):
                return
            source = policy.path
            if self._uri.partition("://")[0] in SERVERS:
                self._client.log_artifact(run_id, str(Path(policy.path) / MANIFEST), "policy")
                source = f"runs:/{run_id}/policy"
            self._client.create_model_version(name, source, run_id, tags=tags, await_creation_for=0)

    def _registered_model(self, name: str) -> None:
        from mlflow.exceptions import MlflowException

        if self._client.search_registered_models(f"name = '{name}'"):
            return
        try:
            self._client.create_registered_model(name)
        except MlflowException as error:  # another run made it in this moment
            if error.error_code != _EXISTS:
                raise

    def close(self, round_index: int | None, status: EndStatus, at: int, reason: str = "") -> None:
        with self._answers():
            run_id = self._id(round_index)
            if reason:
                self._set_tags(run_id, clean_tags({"pawl.reason": reason}))
            self._client.set_terminated(run_id, status, end_time=at)

    def _experiment(self, name: str) -> str:
        from mlflow.exceptions import MlflowException

        found = self._client.get_experiment_by_name(name)
        if found is None:
            root = artifact_root(self._uri)
            try:
                return str(self._client.create_experiment(name, artifact_location=root))
            except MlflowException as error:
                if error.error_code != _EXISTS:
                    raise
            # Another run made it in this moment, or it was deleted.
            found = self._client.get_experiment_by_name(name)
        if found is None or found.lifecycle_stage == "deleted":
            raise deleted(self._uri, name, str(found.experiment_id) if found else "?")
        return str(found.experiment_id)

    def _find_or_create(
        self, key: str, filter_string: str, name: str, tags: dict[str, str], start: int
    ) -> str:
        known = self._ids.get(key)
        if known is not None and self._exists(known):
            return known
        found = self._client.search_runs([self._ids["experiment"]], filter_string, max_results=1)
        if found:
            run_id = str(found[0].info.run_id)
        else:
            made = self._client.create_run(
                self._ids["experiment"], start_time=start, tags=tags, run_name=name
            )
            run_id = str(made.info.run_id)
        if key == "parent":  # rounds known so far belong to a run that is gone
            self._ids = {name: self._ids[name] for name in ("store", "experiment")}
        self._ids[key] = run_id
        write_json(self._ids_path, with_seal(self._ids))
        return run_id

    def _exists(self, run_id: str) -> bool:
        from mlflow.exceptions import MlflowException

        try:
            return bool(self._client.get_run(run_id).info.lifecycle_stage == "active")
        except MlflowException as error:
            if error.error_code == "RESOURCE_DOES_NOT_EXIST":
                return False
            raise

    def _id(self, round_index: int | None) -> str:
        return self._ids["parent" if round_index is None else str(round_index)]

    def _begin(self, run_id: str, params: Mapping[str, str]) -> None:
        """Add the parameters that are missing (MLflow never changes one) and take back an earlier end."""
        from mlflow.entities import Param

        known = self._client.get_run(run_id).data
        new = [Param(name, value) for name, value in params.items() if name not in known.params]
        self._add_params(run_id, new)
        if "pawl.reason" in known.tags:
            self._client.delete_tag(run_id, "pawl.reason")
        self._client.update_run(run_id, status="RUNNING")

    def _add_params(self, run_id: str, params: list[Param]) -> None:
        """All at once; where the server refuses that, one by one, without those that it refuses."""
        try:
            with self._answers():
                self._client.log_batch(run_id, params=params)
            return
        except TrackingRefused:  # of one of them; below it is found which, and told
            pass
        refused = []
        for param in params:
            try:
                with self._answers():
                    self._client.log_batch(run_id, params=[param])
            except TrackingRefused:
                refused.append(param.key)
        if refused:
            self._warn(
                f"tracking left out {len(refused)} parameter(s) that the server refused: {', '.join(refused[:5])}. "
                "The run folder has them"
            )

    def _set_tags(self, run_id: str, tags: Mapping[str, str]) -> None:
        from mlflow.entities import RunTag

        self._client.log_batch(run_id, tags=[RunTag(name, value) for name, value in tags.items()])

    def _known_ids(self) -> dict[str, str]:
        """Ids from an earlier process, if they are of this very server."""
        store = sha256(self._uri.encode()).hexdigest()
        try:
            ids = read_sealed(self._ids_path.read_bytes())
        except (FileNotFoundError, ValueError):
            ids = {}
        ids.pop(SEAL, None)
        return ids if ids.get("store") == store else {"store": store}

    @contextmanager
    def _answers(self) -> Iterator[None]:
        """Turn whatever MLflow raises into our two errors, without the password of the address."""
        try:
            with boundary(TrackingError, "MLflow"):
                yield
        except TrackingError as error:
            if isinstance(error, TrackingAnswered) or error.__cause__ is None:
                raise
            code = vars(error.__cause__).get("error_code", "")
            experiment = self._run.experiment if self._run is not None else ""
            found = told(error.__cause__, self._uri, experiment=experiment)
            if found is not None:
                raise found from None
            kind = TrackingRefused if code in self._FINAL else TrackingError
            raise kind(redact(str(error), self._uri)) from None


def _make_store(path: Path, root: str | None) -> None:
    """Fill a new SQLite file with MLflow's tables, and close it."""
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    store = SqlAlchemyStore(f"sqlite:///{path}", root or "mlartifacts")
    store.engine.dispose()


def _quiet_environment(timeout: float) -> None:
    """MLflow reads these at each request, and has no other way to set them. Retrying is the sending thread's work."""
    os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"] = str(max(1, math.ceil(timeout)))
    os.environ["MLFLOW_HTTP_REQUEST_MAX_RETRIES"] = "0"
    os.environ["MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT"] = "true"
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
