"""No two workers, nor a worker and the one that took its place, nor two drivers of a run, share an engine's seed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from orchestrator.config.run_config import RunConfig
from orchestrator.driver.worker_groups import start_groups
from orchestrator.runs.folder import RunFolder
from policies.base.errors import WorkerLostError
from policies.base.records import PolicyVersion
from policies.storage.fake_model import write_fake_model
from policies.storage.policy_store import PolicyStore
from tests.support.training_cases import version
from workers.cluster.inline import InlineCluster
from workers.cluster.ray.group import RayGroup
from workers.cluster.seam import GroupSpec, WorkerSeed
from workers.rollout.engines.fake import FakeEngine


class SeenEngine(FakeEngine):
    """Keeps the seeds that engines were given."""

    seeds: list[int] = []  # noqa: RUF012 - shared by all on purpose

    def __init__(self, config: Any, **given: Any) -> None:
        super().__init__(config, **given)
        self.seeds.append(given["seed"])


class _Reply:
    def remote(self) -> None:
        """A call whose answer nobody waits for."""


class _Actor:
    place = build = _Reply()


def test_workers_and_those_in_their_place_are_given_seeds_that_differ() -> None:
    given: list[int] = []

    def start(slot: Any, kwargs: dict[str, Any], files: Any) -> Any:
        given.append(kwargs["seed"])
        assert kwargs["other"] == 5
        return _Actor()

    arguments = {"seed": WorkerSeed((0, "rollout", 1)), "other": 5}
    spec = GroupSpec("rollout", _Actor, arguments, size=3)
    group = RayGroup(spec, start, on_warning=lambda _: None)
    for _ in range(2):
        group.replace(group.slots[0], WorkerLostError("gone"))
    assert len(given) == 5
    assert len(set(given)) == 5


def config(model: Path, workers: int) -> RunConfig:
    arithmetic = {"type": "arithmetic", "low": 2, "high": 5, "held_out": 3}
    return RunConfig.model_validate(
        {
            "policy": {"model": str(model)},
            "prompts": {
                "train": arithmetic | {"split": "train"},
                "held_out": arithmetic | {"split": "held_out"},
                "per_round": 4,
            },
            "rollout": {"engine": {"type": f"{__file__}:SeenEngine"}, "workers": workers},
            "verifiers": [{"type": "numeric_match"}],
            "judges": [
                {
                    "type": "rubric",
                    "backend": {"type": "engine", "engine": {"type": f"{__file__}:SeenEngine"}},
                }
            ],
            "preferences": {"type": "right_vs_wrong"},
            "training": {"engine": {"type": "fake"}},
            "cluster": {"backend": "inline"},
        }
    )


def seeds_of(path: Path, policy: PolicyVersion, workers: int, epoch: int) -> list[int]:
    cluster, folder = InlineCluster(), RunFolder(path / f"run{epoch}")
    folder.path.mkdir()
    folder.identity.write_text(json.dumps({"created_at": "2026-11-30T00:00:00+00:00"}))
    store = PolicyStore(folder.policies)
    store.adopt_initial(Path(policy.path))
    settings = config(Path(policy.path), workers)
    seen: list[int] = settings.rollout.engine.component.seeds  # type: ignore[attr-defined]
    seen.clear()
    start_groups(cluster, settings, folder, store, (), epoch=epoch)
    cluster.close()
    return list(seen)


def test_each_engine_of_a_run_has_a_seed_of_its_own_and_another_one_after_a_restart(
    tmp_path: Path,
) -> None:
    policy = version(write_fake_model(tmp_path / "model", skill=0.3))
    first, again = (seeds_of(tmp_path, policy, 2, epoch) for epoch in (1, 2))
    assert len(first) == len(again) == 3, "two samplers and the judge's engine"
    assert len({*first, *again}) == 6
