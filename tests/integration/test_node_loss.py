"""A cluster of three nodes: workers lie where they were asked for, training workers on two nodes make one update, and a
run that loses a node finishes with the same result."""

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

from orchestrator.config.run_config import RunConfig
from orchestrator.driver.launch import run_experiment
from orchestrator.runs.folder import RunFolder
from policies.storage.fake_model import write_fake_model
from tests.support.training_cases import weights_of, write_tiny_model

HERE = Path(__file__).parent
TOLERANCE = 1e-5
"""Of weights that two workers make: sums in another order, as in `tests/parity/test_workers_together.py`."""
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


def with_a_real_model(folder: Path, name: str, **changes: Any) -> dict[str, Any]:
    """The settings of one round whose update is made as `changes` of `training` and `cluster` say."""
    notes = folder / f"{name}-notes"
    notes.mkdir()
    tree: dict[str, Any] = json.loads(config(folder, "").read_text(encoding="utf-8"))
    engine = {"type": f"{HERE.parent / 'noting_trainer.py'}:NotingTrainer", "notes": str(notes)}
    tree |= {"rounds": 1, "cluster": changes["cluster"]}
    tree["policy"] |= {"model": str(folder / "tiny"), "dtype": "float32"}
    tree["rollout"] = {"engine": {"type": "fake"}, "samples_per_prompt": 4}
    tree["training"] = {
        "engine": engine | {"threads": 1},
        "learning_rate": 1e-3,
        "batch_size": 4,
        "precision": "fp32",
        "group_timeout_seconds": 100,
        **changes["training"],
    }
    return tree


@pytest.mark.slow
def test_two_training_workers_on_two_nodes_make_the_weights_of_one(
    tmp_path: Path, nodes: Nodes
) -> None:
    write_tiny_model(tmp_path / "tiny", vocab_size=260)  # the fake sampler speaks bytes
    settings = with_a_real_model(tmp_path, "one", training={}, cluster={"backend": "inline"})
    run_experiment(RunConfig.model_validate(settings), RunFolder(tmp_path / "one"), source="")
    placed = {"workers": 2, "resources": {"num_cpus": 0.5, "placement": "spread"}}
    cluster = {"backend": "ray", "address": nodes.address}
    settings = with_a_real_model(tmp_path, "two", training=placed, cluster=cluster)
    (tmp_path / "two.json").write_text(json.dumps(settings), encoding="utf-8")
    command = [str(Path(sys.executable).with_name("pawl")), "run", str(tmp_path / "two.json")]
    done = subprocess.run(
        [*command, "--name", "two", "--runs-dir", str(tmp_path)],
        env=nodes.env,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-1500:] + done.stderr[-3000:]
    notes = [json.loads((tmp_path / f"two-notes/{rank}.json").read_text()) for rank in range(2)]
    assert nodes.raylets is not None
    assert {note["node"] for note in notes} == set(nodes.raylets), "one worker on each node"
    start = weights_of(tmp_path / "tiny")
    alone, together = (weights_of(tmp_path / run / "policies/0001") for run in ("one", "two"))
    assert alone.keys() == together.keys()
    apart = max(float((alone[n] - together[n]).abs().max()) for n in alone)
    moved = max(float((alone[n] - start[n]).abs().max()) for n in alone)
    assert apart < TOLERANCE < moved / 10, (apart, moved)


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
