"""Nobody gets in: what our cluster listens on, what its workers see, and which clusters are not joined."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from policies.base.errors import ClusterLostError, ConfigurationError
from tests.support.ray_head import end
from workers.cluster.ray.cluster import RayCluster
from workers.cluster.ray.session import answers_without_token, check_exposure

HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def local() -> dict[str, Any]:
    env = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
    env |= dict.fromkeys(("HF_TOKEN", "MLFLOW_TRACKING_TOKEN"), "canary")
    env |= {"AWS_SECRET_ACCESS_KEY": "canary", "JUDGE_API_KEY": "for the judge"}
    done = subprocess.run(
        [sys.executable, str(HERE / "local_cluster.py")],
        env=env,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def test_a_cluster_of_ours_listens_on_loopback_and_nowhere_else(local: dict[str, Any]) -> None:
    assert any("raylet" in name for name in local["processes"])
    assert local["listening"]
    assert [a for a in local["listening"] if not a.removeprefix("::ffff:").startswith("127.")] == []


def test_workers_see_no_token_and_were_started_without_one(local: dict[str, Any]) -> None:
    kept = local["secrets"].pop("JUDGE_API_KEY")
    assert set(local["secrets"].values()) == {None}
    assert local["canaries"] == 0
    assert kept == "for the judge", "what the config names is passed"
    assert local["driver"] == "canary", "the driver keeps its own"
    assert local["mode"] == 0o600


def test_nobody_else_enters_the_folders_of_a_session_of_ours(local: dict[str, Any]) -> None:
    assert local["open to others"] == []


@pytest.fixture(scope="module")
def open_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """The port of a control plane that asks for no token."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    command = [str(Path(sys.executable).with_name("ray")), "start", "--head", "--block"]
    command += [f"--port={port}", "--num-cpus=0", "--include-dashboard=false"]
    command += [f"--temp-dir={tmp_path_factory.mktemp('o')}"]
    env = os.environ | {"RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0"}
    head = subprocess.Popen(
        command,
        env=env,
        start_new_session=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 90
    while answers_without_token(f"127.0.0.1:{port}") is None:
        assert head.poll() is None, "the head node ended"
        assert time.monotonic() < deadline, "the head node did not come up"
        time.sleep(0.2)
    yield port
    end(head)


def test_a_cluster_that_asks_for_no_token_and_can_be_reached_from_elsewhere_is_not_joined(
    open_cluster: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_AUTH_MODE", "token")  # what this process would send is beside the point
    outside = f"{socket.gethostname()}:{open_cluster}"
    with pytest.raises(ConfigurationError) as refused:
        RayCluster(address=outside)
    for part in ("cluster.address", "RAY_AUTH_MODE=token", "RAY_AUTH_TOKEN_PATH", "allow_insecure"):
        assert part in str(refused.value)
    check_exposure(outside, allow_insecure=True)
    check_exposure(f"127.0.0.1:{open_cluster}", allow_insecure=False)


def test_ray_client_addresses_are_refused_with_what_to_use_instead(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    with pytest.raises(ConfigurationError, match=r"pickle.*ray job submit"):
        RayCluster(address="ray://127.0.0.1:10001")


def test_a_local_cluster_is_not_started_with_authentication_switched_off(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    with pytest.raises(ConfigurationError, match=r"RAY_AUTH_MODE.*allow_insecure"):
        RayCluster(num_cpus=1)


def test_a_cluster_that_is_gone_is_worth_another_try_only_for_a_run_that_had_begun(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    with pytest.raises(ClusterLostError, match=r"cluster\.address"):
        RayCluster(address="127.0.0.1:1", was_running=True)
    with pytest.raises(ConfigurationError, match=r"cluster\.address"):
        RayCluster(address="127.0.0.1:1")
