"""The Ray cluster and the inline one keep one contract; Ray's workers may die and nothing waits for ever."""

from __future__ import annotations

import os
import signal
import stat
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from policies.base.errors import (
    CallNotStartedError,
    ConfigurationError,
    PawlError,
    PlacementError,
    RolloutError,
    WaitTimeoutError,
    WorkerLostError,
    WorkerMemoryError,
)
from workers.cluster.inline import InlineCluster
from workers.cluster.ray.cluster import RayCluster
from workers.cluster.ray.group import REST_SECONDS
from workers.cluster.ray.session import answers_without_token
from workers.cluster.seam import NO_FILES, Cluster, GroupSpec, Resources, Restarts


class Probe:
    """A worker that does what the test says."""

    def __init__(self, start: int = 0, broken: bool = False) -> None:
        if broken:
            raise RolloutError("cannot start. Fix: this is a test")
        self.value = start

    def add(self, amount: int) -> int:
        self.value += amount
        return self.value

    def fail(self) -> None:
        raise RolloutError("wrong on purpose")

    def crash(self) -> None:
        raise ZeroDivisionError("not one of ours")

    def sleep(self, seconds: float) -> str:
        time.sleep(seconds)
        return "slept"

    def variable(self, name: str) -> str | None:
        return os.environ.get(name)


@pytest.fixture(scope="module")
def ray_cluster() -> Iterator[RayCluster]:
    cluster = RayCluster(num_cpus=2)
    yield cluster
    cluster.close()


@pytest.fixture(params=["inline", "ray"])
def cluster(request: pytest.FixtureRequest) -> Cluster:
    if request.param == "inline":
        return InlineCluster()
    joined: RayCluster = request.getfixturevalue("ray_cluster")
    return joined


def group(cluster: Cluster, size: int = 1, **kwargs: Any) -> Any:
    asked, restarts = Resources(num_cpus=0.1), Restarts(timeout_seconds=60)
    spec = GroupSpec("probe", Probe, kwargs, size=size, resources=asked, restarts=restarts)
    made = cluster.start_group(spec)
    cluster.wait_ready([made], 60)
    return made


def test_calls_reach_the_worker_that_was_named(cluster: Cluster) -> None:
    probes = group(cluster, size=2, start=10)
    first = [cluster.result(probes.submit("add", 1, worker=0), 30) for _ in range(2)]
    assert first == [11, 12]
    assert cluster.result(probes.submit("add", 1, worker=1), 30) == 11


def test_calls_without_a_name_spread_over_the_workers(cluster: Cluster) -> None:
    probes = group(cluster, size=2)
    calls = [probes.submit("add", 1) for _ in range(4)]
    waiting = list(calls)
    while waiting:
        done = cluster.wait_any(waiting, 30)
        waiting = [c for c in waiting if c not in done]
    assert sorted(cluster.result(c, 30) for c in calls) == [1, 1, 2, 2]


def test_an_error_of_ours_comes_back_as_what_it_is(cluster: Cluster) -> None:
    call = group(cluster).submit("fail", label="shard-0007")
    with pytest.raises(RolloutError, match="wrong on purpose"):
        cluster.result(call, 30)


def test_a_worker_that_cannot_start_says_why(cluster: Cluster) -> None:
    with pytest.raises(RolloutError, match=r"cannot start\. Fix: this is a test"):
        group(cluster, broken=True)


def test_a_foreign_error_is_wrapped_with_the_call_that_failed(ray_cluster: RayCluster) -> None:
    with pytest.raises(PawlError, match=r"probe 0: crash here failed.*"):
        ray_cluster.result(group(ray_cluster).submit("crash", label="here"), 30)


def test_a_killed_worker_is_reported_and_a_fresh_one_takes_its_place(
    ray_cluster: RayCluster,
) -> None:
    probes = group(ray_cluster, start=5)
    pid = probes.pids()[0]
    probes.restart_with(NO_FILES, start=50)
    running, behind = probes.submit("sleep", 60), probes.submit("add", 1)
    time.sleep(0.5)
    os.kill(pid, signal.SIGKILL)
    with pytest.raises(WorkerLostError, match=f"probe 0: sleep.*process {pid} on node") as lost:
        ray_cluster.result(running, 60)
    assert not isinstance(lost.value, CallNotStartedError), "it may have done something"
    with pytest.raises(CallNotStartedError, match="probe 0: add"):
        ray_cluster.result(behind, 60)
    assert ray_cluster.result(probes.submit("add", 1), 60) == 51
    assert probes.pids()[0] not in (pid, -1)


def test_a_worker_whose_node_ran_out_of_memory_rests_before_it_is_started_again(
    ray_cluster: RayCluster,
) -> None:
    probes = group(ray_cluster, start=5)
    call = probes.submit("sleep", 60)
    began = time.monotonic()
    told = probes.lost(call, WorkerMemoryError(f"{call.label}: no memory is left"))
    assert isinstance(told, WorkerMemoryError)
    assert (probes.ready(), probes.actors, probes.pids()) == ([], [], [-1])
    assert ray_cluster.result(probes.submit("add", 1), 60) == 6
    assert REST_SECONDS <= time.monotonic() - began < REST_SECONDS + 20


def test_a_worker_that_is_given_up_for_its_silence_is_replaced_and_that_too_has_an_end(
    ray_cluster: RayCluster,
) -> None:
    probes = group(ray_cluster)
    probes.max_restarts = 1
    for _ in range(2):
        ray_cluster.wait_ready([probes], 60)
        call = probes.submit("sleep", 60)
        ray_cluster.abandon(call, "it said nothing")
        with pytest.raises(WorkerLostError, match="it said nothing"):
            ray_cluster.result(call, 60)
    with pytest.raises(PlacementError, match=r"no worker is left.*2 times in a row.*max_restarts"):
        ray_cluster.result(probes.submit("add", 1), 60)
    assert probes.ready() == []


def test_waiting_ends_with_who_and_which_setting(ray_cluster: RayCluster) -> None:
    probes = group(ray_cluster)
    call = probes.submit("sleep", 5, label="shard-0001")
    with pytest.raises(WaitTimeoutError, match=r"probe 0: sleep shard-0001.*timeout_seconds"):
        ray_cluster.wait_any([call], 0.2)
    with pytest.raises(WaitTimeoutError, match=r"no answer from probe 0"):
        ray_cluster.result(call, 0.1)


def test_more_workers_than_the_machine_has_are_refused_at_once(ray_cluster: RayCluster) -> None:
    with pytest.raises(ConfigurationError, match=r"9 probe worker\(s\) do not fit.*CPU"):
        ray_cluster.start_group(GroupSpec("probe", Probe, size=9, resources=Resources(num_cpus=1)))
    with pytest.raises(ConfigurationError, match="GPU"):
        ray_cluster.start_group(GroupSpec("probe", Probe, resources=Resources(num_gpus=1)))


def test_our_cluster_asks_for_a_token_that_only_we_can_read(ray_cluster: RayCluster) -> None:
    assert os.environ["RAY_AUTH_MODE"] == "token"
    path = Path(os.environ["RAY_AUTH_TOKEN_PATH"])
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert answers_without_token(ray_cluster.gcs_address) is False


def test_an_address_that_nobody_answers_is_refused_with_what_to_do() -> None:
    import subprocess
    import sys

    script = (
        "from workers.cluster.ray.cluster import RayCluster\n"
        "from policies.base.errors import ConfigurationError\n"
        "try:\n    RayCluster(address='127.0.0.1:1')\n"
        "except ConfigurationError as error:\n    print('REFUSED', 'cluster.address' in str(error))\n"
    )
    env = os.environ | {
        "RAY_gcs_server_request_timeout_seconds": "3",
        "RAY_gcs_rpc_server_connect_timeout_s": "3",
        "RAY_NUM_REDIS_GET_RETRIES": "1",
    }
    done = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env=env,
    )
    assert "REFUSED True" in done.stdout, done.stderr[-2000:]


def test_a_second_cluster_in_one_process_works_too() -> None:
    import subprocess
    import sys

    script = (
        "from workers.cluster.ray.cluster import RayCluster\n"
        "for _ in range(2):\n    cluster = RayCluster(num_cpus=1)\n    cluster.close()\n"
        "print('BOTH')\n"
    )
    env = {k: v for k, v in os.environ.items() if not k.startswith("RAY_AUTH")}
    done = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env=env,
    )
    assert "BOTH" in done.stdout, done.stderr[-2000:]
