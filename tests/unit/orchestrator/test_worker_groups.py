"""One list of worker groups: outlines for the preflight, specifications for the cluster, groups by name for a round."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from orchestrator.config.groups import group_outlines
from orchestrator.config.run_config import RunConfig
from orchestrator.driver.worker_groups import RunSoFar, group_specs
from orchestrator.flow.watchdog import Watch, WatchedCluster
from orchestrator.rounds.context import Groups
from orchestrator.runs.folder import RunFolder
from policies.storage.policy_store import PolicyStore
from tests.support.fake_runs import fake_tree
from workers.cluster.inline import InlineCluster
from workers.cluster.seam import GroupSpec, Restarts


def so_far(root: Path, **changes: Any) -> RunSoFar:
    config = RunConfig.model_validate(fake_tree(root, **changes))
    folder = RunFolder(root / "run")
    folder.path.mkdir()
    folder.identity.write_text(json.dumps({"created_at": "2026-11-30T00:00:00+00:00"}))
    store = PolicyStore(folder.policies)
    store.adopt_initial(root / "model")
    return RunSoFar(config, folder, store, (), 1, {})


def test_every_outline_becomes_a_specification_with_its_size_resources_and_restarts(
    tmp_path: Path,
) -> None:
    made = so_far(
        tmp_path,
        verify={"workers": 3, "resources": {"num_cpus": 0.7}},
        evaluation={"verifiers": [{"type": "exact_match"}]},
        judges=[{"type": "rubric", "backend": {"type": "fake"}}],
        cluster={"backend": "inline", "max_restarts": 5, "start_timeout_seconds": 90},
    )
    specs = {spec.name: spec for spec in group_specs(made)}
    outlines = {outline.name: outline for outline in group_outlines(made.config)}
    assert list(specs) == list(outlines) == ["rollout", "verify", "grade", "train", "judge"]
    assert all(specs[name].size == outlines[name].workers for name in specs)
    assert specs["grade"].size == specs["verify"].size == 3
    assert specs["grade"].resources.num_cpus == 0.7
    assert {spec.restarts for spec in specs.values()} == {Restarts(5, 90)}
    assert specs["grade"].reports == specs["verify"].reports == {"verify"}


class RewardWorker:
    """A group that no file of the cluster knows."""

    def __init__(self, offset: float) -> None:
        self.offset = offset

    def score(self, value: float) -> float:
        return value + self.offset


def test_a_new_group_needs_its_specification_and_nothing_of_the_cluster(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    cluster = WatchedCluster(InlineCluster(), Watch(folder, 600.0, lambda _: None))
    spec = GroupSpec("reward", RewardWorker, {"offset": 0.5}, reports=frozenset({"score"}))
    groups = Groups({"reward": cluster.start_group(spec)})
    call = groups["reward"].submit("score", 1.0)
    assert cluster.result(call, 1.0) == 1.5
    cluster.close()


def test_held_out_attempts_are_graded_by_the_verifiers_unless_there_is_a_group_for_it(
    tmp_path: Path,
) -> None:
    cluster = InlineCluster()
    verify, grade = (
        cluster.start_group(GroupSpec(name, RewardWorker, {"offset": 0.0}))
        for name in ("verify", "grade")
    )
    assert Groups({"verify": verify}).grade is verify
    assert Groups({"verify": verify, "grade": grade}).grade is grade
    assert Groups({"verify": verify}).judge is None
    with pytest.raises(KeyError):
        _ = Groups({"verify": verify}).train
    cluster.close()
