"""Nodes that do not see the run folder: the same result through Ray, and a clear end where all were to see it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.faults.scene import CommandServer, Moment
from tests.integration.far_node import World, cannot, far_cluster

pytestmark = pytest.mark.skipif(bool(cannot()), reason=f"no mount namespace here: {cannot()}")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with far_cluster(tmp_path_factory.mktemp("near")) as cluster, CommandServer() as command_server:
        yield World(cluster, command_server)


def test_a_run_that_loses_a_worker_far_from_its_folder_ends_with_the_same_result(
    world: World,
) -> None:
    scene = world.scene("apart", shared=False)
    killed = scene.drive(
        Moment("phase_started", 1, "collect", delay=0.15, action="SIGKILL@rollout")
    )
    code = killed.wait()
    assert killed.fired.exists()
    assert code == 0, killed.text[-5000:]
    assert scene.state() == scene.calm_state()
    scene.check()  # `pawl verify` finds everything whole
    there = world.cluster.there(scene.folder.path)
    assert (there / ".copies").is_dir(), "files must have travelled"
    assert not (there / "run.json").exists(), "the folder was shared after all"


def test_where_all_nodes_were_to_share_the_folder_one_that_does_not_ends_the_run_at_its_start(
    world: World,
) -> None:
    scene = world.scene("promised", shared=True)
    scene.refused(2, "does not see the run folder", "127.0.0.", "cluster.shared_folder: false")
    assert not (scene.folder.path / "rounds" / "0001").exists()
