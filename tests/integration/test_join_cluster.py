"""A run joins a Ray cluster that is there already, with its token, and leaves it running."""

from __future__ import annotations

import json
import os
import secrets
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.ray_head import end


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def answers(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, dict[str, str]]]:
    """A head node of its own on loopback, with a token; ended by its process group, never by name."""
    token = tmp_path_factory.mktemp("token") / "token"
    token.touch(mode=0o600)
    token.write_text(secrets.token_hex(32), encoding="utf-8")
    env = os.environ | {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(token),
        "RAY_USAGE_STATS_ENABLED": "0",
    }
    port = free_port()
    command = [str(Path(sys.executable).with_name("ray")), "start", "--head", "--block"]
    command += [f"--port={port}", "--node-ip-address=127.0.0.1", "--num-cpus=2"]
    command += ["--num-gpus=4"]  # logical: this machine has none
    command += ["--include-dashboard=false", f"--temp-dir={tmp_path_factory.mktemp('r')}"]
    head = subprocess.Popen(
        command,
        env=env,
        start_new_session=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 90
    while not answers(port):
        assert head.poll() is None, "the head node ended"
        assert time.monotonic() < deadline, "the head node did not come up"
        time.sleep(0.2)
    yield f"127.0.0.1:{port}", env
    end(head)


def pawl(folder: Path, env: dict[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [str(Path(sys.executable).with_name("pawl")), *arguments]
    return subprocess.run(
        command, cwd=folder, env=env, capture_output=True, text=True, timeout=200, check=False
    )


def run(
    folder: Path, env: dict[str, str], address: str, name: str
) -> subprocess.CompletedProcess[str]:
    settings = ["cluster.backend=ray", f"cluster.address={address}", "tracking.enabled=false"]
    settings += ["rounds=1"]
    return pawl(folder, env, "run", "fake-smoke", *settings, "--name", name)


def test_a_run_on_a_joined_cluster_finishes_and_leaves_the_cluster_up(
    tmp_path: Path, cluster: tuple[str, dict[str, str]]
) -> None:
    address, env = cluster
    for name in ("first", "second"):
        done = run(tmp_path, env, address, name)
        assert done.returncode == 0, done.stdout[-1500:] + done.stderr[-3000:]
    assert answers(int(address.split(":")[1]))


def test_without_the_token_the_cluster_cannot_be_joined(
    tmp_path: Path, cluster: tuple[str, dict[str, str]]
) -> None:
    address, env = cluster
    wrong = tmp_path / "token"
    wrong.touch(mode=0o600)
    wrong.write_text(secrets.token_hex(32), encoding="utf-8")
    done = run(tmp_path, env | {"RAY_AUTH_TOKEN_PATH": str(wrong)}, address, "foreign")
    assert done.returncode == 2, done.stdout[-1500:] + done.stderr[-3000:]
    assert "cluster.address" in done.stderr
    assert "RAY_AUTH_TOKEN_PATH" in done.stderr


GPUS = """
import json, os, sys
from workers.cluster.seam import GroupSpec, Resources
from workers.cluster.ray.cluster import RayCluster

class Worker:
    def __init__(self):
        self.torch = "torch" in sys.modules
    def sees(self): return os.environ.get("CUDA_VISIBLE_DEVICES"), self.torch

cluster = RayCluster(address=sys.argv[1])
found = {"all": cluster.gpus()}
asked = {"train": (2, 1), "rollout": (2, 1), "verify": (1, 0)}
groups = {
    name: cluster.start_group(
        GroupSpec(name, Worker, size=size, resources=Resources(0.1, gpus))
    )
    for name, (size, gpus) in asked.items()
}
cluster.wait_ready(list(groups.values()), 60)
for name, group in groups.items():
    calls = [group.submit("sees", worker=i) for i in range(group.size)]
    found[name] = [cluster.result(call, 30) for call in calls]
print(json.dumps(found), flush=True)
cluster.close()
"""


def test_each_worker_sees_the_one_gpu_it_was_given_and_none_where_it_asked_for_none(
    cluster: tuple[str, dict[str, str]],
) -> None:
    address, env = cluster
    env = {name: value for name, value in env.items() if name != "CUDA_VISIBLE_DEVICES"}
    done = subprocess.run(
        [sys.executable, "-c", GPUS, address],
        env=env, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["all"] == 4
    shown = [devices for devices, _ in (*found["train"], *found["rollout"])]
    assert sorted(shown) == ["0", "1", "2", "3"]  # one each, none shared
    assert found["verify"] == [["", False]]
    assert not any(torch for name in ("train", "rollout") for _, torch in found[name])


EPOCH = """
import os, sys, time
from workers.cluster.seam import GroupSpec, Resources
from workers.cluster.ray.cluster import RayCluster

class Worker:
    def pid(self): return os.getpid()

address, epoch = sys.argv[1], int(sys.argv[2])
warnings = []
cluster = RayCluster(address=address, run="abc", epoch=epoch, on_warning=warnings.append)
group = cluster.start_group(GroupSpec("rollout", Worker, resources=Resources(num_cpus=0.1)))
cluster.wait_ready([group], 60)
print(group.pids()[0], warnings, flush=True)
if epoch == 1:
    time.sleep(300)
cluster.close()
"""


def test_a_new_driver_ends_the_actors_that_an_earlier_epoch_of_its_run_left(
    cluster: tuple[str, dict[str, str]],
) -> None:
    address, env = cluster
    command = [sys.executable, "-c", EPOCH, address]
    first = subprocess.Popen([*command, "1"], env=env, stdout=subprocess.PIPE, text=True)
    try:
        assert first.stdout is not None
        left = int(first.stdout.readline().split()[0])
        done = subprocess.run(
            [*command, "2"], env=env, capture_output=True, text=True, timeout=120, check=False
        )
        assert "ended abc/e000001/rollout/0" in done.stdout, done.stdout + done.stderr[-2000:]
        deadline = time.monotonic() + 30
        while os.path.exists(f"/proc/{left}"):
            assert time.monotonic() < deadline, "the actor of epoch 1 lives on"
            time.sleep(0.1)
    finally:
        first.kill()
        first.communicate(timeout=30)  # closes its pipe too
