"""Translates Ray's exceptions: each becomes one of our errors, with the call, the node and the cause."""

from __future__ import annotations

import re
from dataclasses import dataclass

from policies.base.errors import (
    ClusterLostError,
    ConfigurationError,
    PawlError,
    PlacementError,
    StorageError,
    WaitTimeoutError,
    WorkerLostError,
    WorkerMemoryError,
    explain,
)
from policies.storage.files import storage_error

_MAX_CAUSE = 400


@dataclass(frozen=True)
class Place:
    """The place where a worker runs. Example: `Place(pid=812, node="4f2a91c07d", address="10.0.0.7")`."""

    pid: int
    node: str
    address: str

    def __str__(self) -> str:
        return f"process {self.pid} on node {self.node[:10]} ({self.address})"


def translate(
    error: Exception, label: str, *, place: Place | None = None, timeout_seconds: float = 0.0
) -> PawlError:
    """Our error for what Ray raised about the call `label` of the worker at `place`.

    A lost worker is a `WorkerLostError`: the call may be handed out again. Everything else is not blindly retried.
    """
    from ray import exceptions as ray

    where = f" ({place})" if place is not None else ""
    if isinstance(error, ray.GetTimeoutError):
        return WaitTimeoutError(
            explain(
                f"no answer from {label}{where}",
                value=timeout_seconds,
                where="the timeout of this wait, under cluster",
                fix="look at the worker's log in Ray's session folder; raise the timeout if the work is just slow",
            )
        )
    # Before the task errors: Ray gives an error of ours the base classes of both.
    if isinstance(error, ray.RayTaskError):
        cause = error.cause
        if isinstance(cause, PawlError):
            return type(cause)(f"{label}: {cause}")
        disk = storage_error(cause, cause.filename or label) if isinstance(cause, OSError) else None
        if disk is not None:  # of the worker's node
            return StorageError(f"{label}{where}: {disk}")
        return PawlError(f"{label} failed{where}: {error}")
    told = _of_the_cluster(error, label, where)
    if told is not None:
        return told
    lost = _lost(error)
    if lost is not None:
        return WorkerLostError(f"{label}: {lost}{where}: {_cause(error)}")
    return ClusterLostError(
        f"{label}: the Ray cluster failed: {type(error).__name__}: {_cause(error)}. "
        "Fix: look at the logs in Ray's session folder; `pawl resume` goes on from the last finished shard"
    )


def _of_the_cluster(error: Exception, label: str, where: str) -> PawlError | None:
    """Our error for what a node or the cluster refused; None for everything else."""
    from ray import exceptions as ray

    if isinstance(error, ray.OutOfMemoryError):
        return WorkerMemoryError(
            f"{label}: Ray ended the worker{where} because its node ran out of memory: {_cause(error)}. "
            "Fix: fewer workers on a node (a higher num_cpus in their resources), smaller batches or shards"
        )
    if isinstance(error, ray.ActorUnschedulableError | ray.TaskUnschedulableError):
        return PlacementError(
            explain(
                f"{label}: no node that is left may take this worker: {_cause(error)}",
                value=where.strip(" ()") or "not placed",
                where="resources of the group (custom, labels)",
                fix="start a node with that resource or label, or ask for less; then `pawl resume`",
            )
        )
    if isinstance(error, ray.RuntimeEnvSetupError):
        return ConfigurationError(
            f"{label}: Ray could not prepare the worker's environment: {_cause(error)}. Fix: check the cluster's "
            "runtime environment (`ray job submit --working-dir`, pip, env_vars)"
        )
    if isinstance(error, ray.AuthenticationError):
        return ConfigurationError(
            f"{label}: the Ray cluster refuses our token: {_cause(error)}. Fix: set RAY_AUTH_MODE=token and "
            "RAY_AUTH_TOKEN_PATH to the file with the cluster's token"
        )
    if isinstance(error, ray.OutOfDiskError | ray.ObjectStoreFullError):
        return StorageError(
            f"{label}: a node's local disk or Ray's object store is full{where}: {_cause(error)}. "
            "Fix: make room on the node (Ray's --temp-dir), then `pawl resume`"
        )
    return None


def _lost(error: Exception) -> str | None:
    """Tell how a worker was lost, in words; None when the error says something else."""
    from ray import exceptions

    if isinstance(error, exceptions.ActorUnavailableError):
        return "the worker cannot be reached; whether the call ran is unknown"
    if isinstance(error, exceptions.ActorDiedError) and error.preempted:
        return "the worker died with its node, which was taken back (preempted)"
    if isinstance(error, exceptions.RayActorError | exceptions.WorkerCrashedError):
        return "the worker died"
    if isinstance(error, exceptions.NodeDiedError):
        return "the worker's node died"
    if isinstance(error, exceptions.OwnerDiedError):
        return "the answer was lost with the process that held it"
    if isinstance(error, exceptions.ObjectLostError):
        return "the answer was lost with its node"
    if isinstance(error, exceptions.TaskCancelledError):
        return "the call was cancelled"
    return None


def _cause(error: Exception) -> str:
    """Ray's many lines as one, without what only fills them."""
    text = str(error)
    fields = dict(re.findall(r"^\t(pid|ip|name): (.+)$", text, re.MULTILINE))
    lines = [
        line.strip() for line in text.splitlines() if line.strip() and not line.startswith("\t")
    ]
    told = " ".join(lines)[:_MAX_CAUSE] or type(error).__name__
    known = ", ".join(f"{name} {value}" for name, value in fields.items())
    return f"{told} [{known}]" if known else told
