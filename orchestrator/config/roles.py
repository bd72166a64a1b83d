"""Roles: models besides the policy that are asked by a name, each with workers and resources of its own."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Annotated

from pydantic import Field, StringConstraints

from orchestrator.config.sections import ResourceSettings
from policies.base.bounds import MAX_CPUS, MAX_WORKERS
from policies.base.component_walk import requirements_of, stated_requirements
from policies.base.requirements import POLICY
from workers.roles.worker import RoleAsking

if TYPE_CHECKING:
    from orchestrator.config.run_sections import RunSections
    from orchestrator.config.stages import Stage

RoleName = Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9_]{0,31}$")]
"""Name of a role: small letters, digits and underscores."""


class RoleSettings(RoleAsking):
    """One role, with what its workers ask for."""

    workers: int = Field(default=1, ge=1, le=MAX_WORKERS)
    """Actors of the role, each with a backend of its own."""
    resources: ResourceSettings = ResourceSettings(num_cpus=0.2)
    """What each of them asks for; give it a GPU when the role is a model of ours."""
    threads: int | None = Field(default=None, ge=1, le=MAX_CPUS)
    """CPU threads that one of them computes with, when the role is a model of ours; null divides the cores of its
    machine by `workers`."""

    def asking(self) -> RoleAsking:
        """Return what decides the answers."""
        return RoleAsking(**{name: getattr(self, name) for name in RoleAsking.model_fields})


def group_of(role: str) -> str:
    """Name of the worker group of a role. Example: `role-teacher`."""
    return f"role-{role}"


def problems(config: RunSections, stages: tuple[Stage, ...]) -> Iterator[str]:
    """Every contradiction about roles: names that nobody has, roles that nobody asks, answers without meaning."""
    asked: set[str] = set()
    for stage in stages:
        at = f"stages[{stage.index}]." if config.stages else ""
        names = [share.role for share in stage.mixture if share.role is not None]
        asked.update(names)
        if len(names) > 1:
            yield (
                f"{at}rollout.mixture names {len(names)} roles ({', '.join(names)}): one may answer beside the policy. "
                "Fix: leave the others out"
            )
        for name in names:
            if name not in config.roles:
                yield _unknown(f"{at}rollout.mixture", name, config.roles)
        turns = stated_requirements(stage.strategy).max_turns
        if names and turns is not None and turns > 1:
            yield (
                f"{at}rollout.mixture names the role {names[0]!r}, which answers once, but the strategy "
                f"{stage.strategy.type!r} has up to {turns} turns. Fix: use strategy {{type: independent}}, or leave "
                "the role out"
            )
    for name, role in config.roles.items():
        if name not in asked:
            yield (
                f"nothing asks the role {name!r}. Fix: give it samples, rollout.mixture=[{{role: {name}, samples: 1}}]"
                f", or leave roles.{name} out"
            )
        if any(model.name == POLICY for model in requirements_of(role.backend).models):
            yield (
                f"roles.{name}.backend answers with the policy itself. Fix: let an earlier policy sample, "
                "rollout.mixture=[{rounds_ago: 1, samples: 1}], or give the backend another model"
            )


def _unknown(where: str, name: str, roles: Mapping[str, RoleSettings]) -> str:
    close = difflib.get_close_matches(name, roles, n=1)
    hint = f"did you mean {close[0]!r}? " if close else ""
    known = ", ".join(roles) or "none"
    return f"{where} names the role {name!r}, which roles does not have. {hint}Known: {known}. Fix: add roles.{name}"
