"""Nodes that do not see the run folder: the same result through Ray, and a clear end where a shared one was promised."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from orchestrator.run_folder import RunFolder
from tests.integration.far_node import FarCluster, cannot, far_cluster

ROOT = Path(__file__).resolve().parents[2]
ON_FAR = [
    f"{group}.labels={{pool: far}}"
    for group in (
        "rollout.resources",
        "verify.resources",
        "verify.judge_resources",
        "training.resources",
    )
]

pytestmark = pytest.mark.skipif(bool(cannot()), reason=f"no mount namespace here: {cannot()}")


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FarCluster]:
    with far_cluster(tmp_path_factory.mktemp("near")) as found:
        yield found


def pawl(
    cluster: FarCluster, *arguments: str, timeout: float = 200
) -> subprocess.CompletedProcess[str]:
    command = [str(Path(sys.executable).with_name("pawl")), *arguments]
    return subprocess.run(
        command,
        cwd=cluster.folder,
        env=cluster.env | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )


def run(cluster: FarCluster, name: str, *settings: str) -> subprocess.CompletedProcess[str]:
    return pawl(cluster, "run", "fake-smoke", "rounds=2", *settings, "--name", name)


def far(cluster: FarCluster) -> list[str]:
    return ["cluster.backend=ray", f"cluster.address={cluster.address}", *ON_FAR]


def test_a_run_without_a_shared_folder_has_the_same_journal(cluster: FarCluster) -> None:
    done = run(cluster, "whole")
    assert done.returncode == 0, done.stderr[-3000:]
    done = run(cluster, "apart", *far(cluster), "cluster.shared_folder=false")
    assert done.returncode == 0, done.stdout[-1500:] + done.stderr[-5000:]
    whole, apart = (RunFolder(cluster.folder / "runs" / name) for name in ("whole", "apart"))
    assert apart.journal.read_bytes() == whole.journal.read_bytes()
