"""Outlines of a run's worker groups: how many workers, with which resources, and how many GPUs they would like.

The one list of groups. The preflight and the numbers of GPUs read it; the driver adds what each worker is made of
(`orchestrator/driver/worker_groups.py`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from orchestrator.config.roles import group_of
from orchestrator.config.sections import ResourceSettings

if TYPE_CHECKING:
    from orchestrator.config.run_config import RunConfig


@dataclass(frozen=True)
class GroupOutline:
    """Workers of one kind, before it is known what they are made of."""

    name: str
    role: str
    """Groups of one role do the same work with the same resources."""
    workers: int
    resources: ResourceSettings
    gpus_wanted: int
    """GPUs of one worker where there are enough; 0 for one that computes with no model."""

    @property
    def automatic(self) -> bool:
        """Tell whether it takes what the machine or cluster has."""
        return self.resources.num_gpus == "auto"

    @property
    def gpus(self) -> str:
        """For people."""
        return "GPUs as there are" if self.automatic else f"{self.resources.gpus:g} GPU"


def group_outlines(config: RunConfig) -> list[GroupOutline]:
    """Every worker group of a run."""
    verify = config.verify
    asked = [
        ("rollout", "rollout", config.rollout.workers, config.rollout.resources),
        ("verify", "verify", verify.workers, verify.resources),
        ("train", "train", config.training.workers, config.training.resources),
    ]
    if config.evaluation.verifiers is not None:
        asked.insert(2, ("grade", "verify", verify.workers, verify.resources))
    if config.judges:
        asked.append(("judge", "judge", verify.judge_workers, verify.judge_resources))
    for name, settings in config.roles.items():
        group = group_of(name)
        asked.append((group, group, settings.workers, settings.resources))
    role_of = {name: role for name, role, _, _ in asked}
    wanted: dict[str, int] = {}
    for each in config.components:
        role = role_of.get(each.group, "")
        wanted[role] = max(wanted.get(role, 0), each.gpus)
    return [
        GroupOutline(name, role, workers, resources, wanted.get(role, 0))
        for name, role, workers, resources in asked
    ]
