"""Each of Ray's exceptions becomes the error of ours that says what to do, with the call, the node and the cause."""

from __future__ import annotations

import errno
import os

import pytest
from ray import exceptions

from policies.base.errors import (
    ClusterLostError,
    ConfigurationError,
    PawlError,
    PlacementError,
    RolloutError,
    StorageError,
    WaitTimeoutError,
    WorkerLostError,
    WorkerMemoryError,
)
from workers.cluster.ray.failures import Place, translate

PLACE = Place(pid=812, node="4f2a91c07d3b55", address="10.0.0.7")
LABEL = "rollout 0: sample shard-0003"


def lost_object(kind: type[exceptions.ObjectLostError]) -> exceptions.ObjectLostError:
    return kind("00ff", None, "")


CASES: list[tuple[Exception, type[PawlError], str]] = [
    (exceptions.GetTimeoutError("slow"), WaitTimeoutError, r"no answer.*got 7"),
    (
        exceptions.ActorUnavailableError("broken pipe", None),
        WorkerLostError,
        "unknown.*broken pipe",
    ),
    (exceptions.ActorDiedError(), WorkerLostError, "the worker died"),
    (exceptions.WorkerCrashedError(), WorkerLostError, "the worker died"),
    (exceptions.OutOfMemoryError("23.1GB / 24GB"), WorkerMemoryError, "memory: 23.1GB.*num_cpus"),
    (exceptions.NodeDiedError("gone"), WorkerLostError, "node died"),
    (lost_object(exceptions.ObjectLostError), WorkerLostError, "answer was lost"),
    (lost_object(exceptions.OwnerDiedError), WorkerLostError, "process that held it"),
    (exceptions.ActorUnschedulableError("no label"), PlacementError, "no label.*labels"),
    (exceptions.RuntimeEnvSetupError("pip failed"), ConfigurationError, "pip failed"),
    (exceptions.AuthenticationError("bad token"), ConfigurationError, "RAY_AUTH_TOKEN_PATH"),
    (exceptions.OutOfDiskError("full"), StorageError, "full"),
    (exceptions.RaySystemError("raylet"), ClusterLostError, "raylet"),
    (exceptions.LocalRayletDiedError(), ClusterLostError, "pawl resume"),
]


@pytest.mark.parametrize(
    ("error", "kind", "text"), CASES, ids=[type(error).__name__ for error, _, _ in CASES]
)
def test_an_exception_of_ray_becomes_the_error_that_says_what_to_do(
    error: Exception, kind: type[PawlError], text: str
) -> None:
    told = translate(error, LABEL, place=PLACE, timeout_seconds=7)
    assert type(told) is kind
    assert LABEL in str(told)
    with pytest.raises(kind, match=f"(?s){text}"):
        raise told


def test_a_lost_worker_is_named_with_its_process_and_node() -> None:
    told = str(translate(exceptions.ActorDiedError(), LABEL, place=PLACE))
    assert "process 812 on node 4f2a91c07d (10.0.0.7)" in told
    assert "\n" not in told


def test_a_disk_that_refuses_a_worker_is_worth_another_try() -> None:
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/run/rounds/0001/x")
    told = translate(exceptions.RayTaskError("call", "traceback", full), "train 0: update")
    assert isinstance(told, StorageError)
    assert "the disk is full" in str(told)
    assert "/run/rounds/0001/x" in str(told)
    other = exceptions.RayTaskError("call", "traceback", IsADirectoryError(errno.EISDIR, "x"))
    assert not isinstance(translate(other, "train 0: update"), StorageError)


def test_an_error_of_ours_from_a_worker_stays_what_it_is_and_is_not_retried() -> None:
    raised = exceptions.RayTaskError("call", "traceback", RolloutError("wrong on purpose"))
    told = translate(raised.as_instanceof_cause(), LABEL)
    assert type(told) is RolloutError
    assert str(told) == f"{LABEL}: wrong on purpose"
