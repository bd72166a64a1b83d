"""Roles: models besides the policy that are asked by a name, each with workers and resources of its own."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, StringConstraints

from orchestrator.config.sections import ResourceSettings
from policies.base.bounds import MAX_CPUS, MAX_WORKERS
from workers.roles.worker import RoleAsking

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
        return RoleAsking(**{n: value for n, value in self if n in RoleAsking.model_fields})


def group_of(role: str) -> str:
    """Name of the worker group of a role. Example: `role-teacher`."""
    return f"role-{role}"
