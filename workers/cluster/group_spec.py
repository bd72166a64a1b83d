"""The specification of a worker group: all that a cluster needs to start it, and to start lost workers of it again."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from policies.base.seeds import derive_seed

Placement = Literal["default", "spread", "pack"]
"""Which nodes a group's workers prefer: Ray's choice, as many different ones as there are, as few as possible."""


@dataclass(frozen=True)
class Resources:
    """Resources that one worker asks for, and where the workers of a group should lie."""

    num_cpus: float = 0.5
    num_gpus: float = 0.0
    custom: Mapping[str, float] = field(default_factory=dict)
    """Ray resources by name, as nodes offer them (`ray start --resources`)."""
    labels: Mapping[str, str] = field(default_factory=dict)
    """Node labels that must hold (`ray start --labels`)."""
    placement: Placement = "default"

    def __str__(self) -> str:
        parts = [f"{self.num_cpus:g} CPU", f"{self.num_gpus:g} GPU"]
        parts += [f"{amount:g} {name}" for name, amount in self.custom.items()]
        parts += [f"a node labelled {name}={value}" for name, value in self.labels.items()]
        return ", ".join(parts)


@dataclass(frozen=True)
class Files:
    """Files that a call needs and makes; only nodes that do not see the run folder look at it (`cluster/transfer`)."""

    reads: tuple[str, ...] = ()
    """Files (with the markers beside them) and folders that must be there before the call."""
    writes: tuple[str, ...] = ()
    """Files and folders that it makes: on the driver's node before its answer, also when it fails."""
    live: tuple[str, ...] = ()
    """Files that grow, and folders of parts that are renamed when they are whole: followed while it works."""


NO_FILES = Files()


@dataclass(frozen=True)
class WorkerSeed:
    """Among a group's arguments: a seed that no two workers share, nor a worker and the one that took its place."""

    parts: tuple[object, ...]
    """What it is derived from besides: the run's seed, the group, the driver's epoch."""

    def of(self, index: int, replaced: int) -> int:
        """The seed of worker `index`, of which `replaced` earlier ones were lost."""
        return derive_seed(*self.parts, index, replaced)


@dataclass(frozen=True)
class Restarts:
    """Rules for fresh workers in the places of lost ones."""

    max_in_a_row: int = 8
    """Most deaths of one worker without a finished call between, before it is given up."""
    timeout_seconds: float = 600.0
    """Longest time for a worker to be placed and built, at the start and after a death."""


@dataclass(frozen=True)
class GroupSpec:
    """A group of equal workers. Example: `GroupSpec("verify", VerifyWorker, {"verifiers": (...)}, size=2)`."""

    name: str
    worker: Callable[..., Any]
    """Makes one worker of `arguments`; its public methods are the calls."""
    arguments: Mapping[str, Any] = field(default_factory=dict)
    """A `WorkerSeed` among them is another number for each worker."""
    size: int = 1
    resources: Resources = Resources()  # frozen
    files: Files = NO_FILES
    """Read by a worker when it is built."""
    reports: frozenset[str] = frozenset()
    """Methods that give signs of life while they work: in these only silence means something."""
    restarts: Restarts = Restarts()  # frozen

    def arguments_of(self, index: int, replaced: int = 0) -> dict[str, Any]:
        """The arguments of one of its workers, of which `replaced` earlier ones were lost."""
        return arguments_of(self.arguments, index, replaced)


def arguments_of(kwargs: Mapping[str, Any], index: int, replaced: int = 0) -> dict[str, Any]:
    """A group's arguments for one of its workers."""
    return {
        name: value.of(index, replaced) if isinstance(value, WorkerSeed) else value
        for name, value in kwargs.items()
    }
