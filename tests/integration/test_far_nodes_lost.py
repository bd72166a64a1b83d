"""Nodes that do not see the run folder are lost for good: what a worker had sent by then is enough to go on."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Iterator

import psutil
import pytest

from orchestrator.runs.events import read_events
from tests.faults.scene import CommandServer, Moment
from tests.integration.far_node import FarCluster, World, cannot, far_cluster
from tests.support.s3_server import CREDENTIALS, s3_server

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(bool(cannot()), reason=f"no mount namespace here: {cannot()}"),
]


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with s3_server() as address:
        yield address


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with (
        far_cluster(tmp_path_factory.mktemp("near"), num_far=2) as cluster,
        CommandServer() as command_server,
    ):
        yield World(cluster, command_server)


def test_a_run_without_a_shared_folder_goes_on_from_its_bucket_when_the_driver_s_machine_is_gone(
    world: World, server: str
) -> None:
    storage = {"url": "s3://models/pawl", "endpoint_url": server, "max_backlog": 1}
    scene = world.scene("mirrored", shared=False, changes={"storage": storage})
    scene.env = scene.env | CREDENTIALS | {"AWS_ENDPOINT_URL": server}
    scene.kill_at(Moment("phase_started", 2, "train", delay=0.5))
    shutil.rmtree(scene.runs)
    scene.runs = scene.home / "elsewhere"
    again = scene.command(["resume", "s3://models/pawl/run", "--runs-dir", str(scene.runs)])
    assert again.wait() == 0, again.text[-5000:]
    assert scene.folder.journal.read_bytes() == world.calm.folder.journal.read_bytes()
    scene.check()


def test_training_workers_on_different_nodes_read_the_same_and_one_of_them_writes(
    world: World,
) -> None:
    spread = {"workers": 2, "resources": {"placement": "spread"}}
    scene = world.scene("together", shared=False, changes={"training": spread})
    scene.finish()
    assert scene.state() == scene.calm_state()
    scene.check()
    for node in (0, 1):
        assert (world.cluster.there(scene.folder.path, node) / ".copies").is_dir(), "one node only"


def test_files_go_on_travelling_when_the_process_that_serves_them_is_killed(world: World) -> None:
    scene = world.scene("unserved", shared=False)
    driver = scene.drive(Moment("shard_stage_finished", 1, "collect", action="hold"))
    driver.wait_until_fired()
    serving = [
        each
        for each in psutil.Process(world.cluster.near.pid).children(recursive=True)
        if "_ServerHost" in "".join(each.cmdline())
    ]
    assert len(serving) == 1
    serving[0].kill()
    driver.go_on()
    assert driver.wait() == 0, driver.text[-5000:]
    assert scene.state() == scene.calm_state()
    scene.check()


def test_a_trainer_that_moves_to_another_node_goes_on_from_its_last_checkpoint(
    world: World,
) -> None:
    slow = {"training": {"engine": {"type": "fake", "seconds_per_step": 0.4}}}
    scene = world.scene("moved", shared=False, changes=slow)
    driver = scene.drive(Moment("training_step", 1, "train", nth=5, action="SIGSTOP@train"))
    driver.wait_until_fired()
    end_node(world.cluster, int(driver.fired.read_text(encoding="utf-8")))
    assert driver.wait() == 0, driver.text[-5000:]
    warnings = [
        e.detail["message"] for e in read_events(scene.folder.events) if e.kind == "warning"
    ]
    went_on = [str(text) for text in warnings if "goes on after step" in str(text)]
    assert went_on, warnings
    assert "goes on after step 0" not in went_on[0], "it began again"
    assert scene.state() == scene.calm_state()
    scene.check()


def end_node(cluster: FarCluster, pid: int) -> None:
    """Kill the far node on which process `pid` runs."""
    space = os.readlink(f"/proc/{pid}/ns/mnt")
    for node in cluster.far:
        if node.poll() is None and os.readlink(f"/proc/{node.pid}/ns/mnt") == space:
            for each in psutil.Process(node.pid).children(recursive=True):
                os.kill(each.pid, signal.SIGKILL)
            return
    raise AssertionError("it runs on no far node")
