"""A cluster of three nodes loses one while the run works on it: the run finishes with the same result."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from policies.fake_model import write_fake_model

HERE = Path(__file__).parent
QUICK_DEATH = {
    # A node counts as dead after 3 s of silence here, instead of 15.
    "RAY_health_check_initial_delay_ms": "0",
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_timeout_ms": "1000",
    "RAY_health_check_failure_threshold": "3",
}


@dataclass
class Nodes:
    """The cluster process, and what it says of itself."""

    process: subprocess.Popen[str]
    env: dict[str, str]
    address: str = ""
    raylets: dict[str, int] | None = None

    def read(self) -> None:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, "the cluster did not come up"
        found = json.loads(line)
        self.address, self.raylets = found["address"], found["raylets"]

    def add(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write("add\n")
        self.process.stdin.flush()
        self.read()


@pytest.fixture(scope="module")
def nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nodes]:
    token = tmp_path_factory.mktemp("token") / "token"
    token.touch(mode=0o600)
    token.write_text(secrets.token_hex(32), encoding="utf-8")
    sockets = tempfile.mkdtemp(prefix="r")  # short: Ray's sockets lie in it
    env = os.environ | QUICK_DEATH
    env |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token), "RAY_TMPDIR": sockets}
    env |= {"RAY_USAGE_STATS_ENABLED": "0", "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}
    process = subprocess.Popen(
        [sys.executable, str(HERE / "ray_nodes.py"), "2", "2"],
        env=env,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        start_new_session=True,
    )
    cluster = Nodes(process, env)
    try:
        cluster.read()
        yield cluster
    finally:
        try:
            process.communicate(timeout=60)
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
            shutil.rmtree(sockets, ignore_errors=True)


def config(folder: Path, address: str) -> Path:
    write_fake_model(folder / "model", skill=0.3)
    arithmetic = {"type": "arithmetic", "low": 2, "high": 6, "held_out": 5}
    tree = {
        "rounds": 2,
        "policy": {"model": str(folder / "model")},
        "prompts": {
            "train": arithmetic | {"split": "train"},
            "held_out": arithmetic | {"split": "held_out"},
            "per_round": 12,
        },
        "rollout": {
            "engine": {"type": "fake", "seconds_per_call": 0.2},
            "samples_per_prompt": 2,
            "prompts_per_shard": 2,
            "workers": 2,
            "resources": {"num_cpus": 0.5, "placement": "spread"},
        },
        "verifiers": [{"type": "numeric_match"}],
        "preferences": {"type": "right_vs_wrong"},
        "training": {"engine": {"type": "fake", "seconds_per_step": 0.5}},
        "cluster": {"backend": "ray", "address": address},
        "tracking": {"enabled": False},
    }
    path = folder / "config.json"
    path.write_text(json.dumps(tree), encoding="utf-8")
    return path


def drive(folder: Path, nodes: Nodes, role: str, when: str) -> dict[str, Any]:
    command = [sys.executable, str(HERE / "node_killer.py"), str(folder / "run")]
    command += [str(config(folder, nodes.address)), json.dumps(nodes.raylets), role, when]
    done = subprocess.run(
        command, env=nodes.env, capture_output=True, text=True, timeout=240, check=False
    )
    assert done.returncode == 0, done.stdout[-1500:] + done.stderr[-4000:]
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def test_workers_lie_where_their_resources_say(nodes: Nodes) -> None:
    done = subprocess.run(
        [sys.executable, str(HERE / "placements.py"), nodes.address],
        env=nodes.env,
        capture_output=True,
        text=True,
        timeout=250,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert nodes.raylets is not None
    everywhere = set(nodes.raylets)
    assert set(found["spread"]) == everywhere
    assert len(set(found["pack"])) == 1
    assert set(found["custom"]) | set(found["labels"]) == everywhere
    for part in (
        "1 nowhere",
        "none of them runs yet",
        "of 4 only1",
        "cluster.start_timeout_seconds",
    ):
        assert part in found["refused"]


@pytest.fixture(scope="module")
def undisturbed(
    nodes: Nodes, tmp_path_factory: pytest.TempPathFactory
) -> tuple[bytes, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("whole")
    found = drive(folder, nodes, "rollout", "never")
    return (folder / "run" / "journal.jsonl").read_bytes(), found


@pytest.mark.parametrize(
    ("role", "when"), [("rollout", "shard_stage_finished"), ("train", "phase_started")]
)
def test_a_run_that_loses_a_node_finishes_with_the_same_journal(
    tmp_path: Path,
    nodes: Nodes,
    undisturbed: tuple[bytes, dict[str, Any]],
    role: str,
    when: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    journal, whole = undisturbed
    found = drive(tmp_path, nodes, role, when)
    nodes.add()  # for who comes next
    assert found["killed"] >= 2, "a raylet and at least one worker must have been killed"
    assert found["warnings"], "the loss must have been noticed"
    assert (tmp_path / "run" / "journal.jsonl").read_bytes() == journal
    lost = found["seconds"] - whole["seconds"]
    with capsys.disabled():
        sys.stdout.write(
            f"\n  node lost in {role}: noticed after {found['noticed_after']:.1f} s, run took "
            f"{found['seconds']:.1f} s instead of {whole['seconds']:.1f} s ({lost:+.1f} s)\n"
        )
    assert lost - found["noticed_after"] < 30, found["warnings"]
