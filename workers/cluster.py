"""The cluster seam: groups of workers, calls that run elsewhere, and waits that always end.

`workers.pool.RayCluster` is the real one, `workers.inline.InlineCluster` runs everything in this process.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol


@dataclass(frozen=True)
class Resources:
    """What one worker asks for."""

    num_cpus: float = 0.5
    num_gpus: float = 0.0


class Call(Protocol):
    """A method call that was handed to a worker."""

    @property
    def label(self) -> str:
        """Who does what, for messages: `rollout 0: sample shard-0003`."""
        ...


class Group(Protocol):
    """Workers of one kind."""

    @property
    def name(self) -> str: ...

    @property
    def size(self) -> int: ...

    def submit(self, method: str, *args: Any, worker: int | None = None, label: str = "") -> Call:
        """Hand a call to `worker`, or to the one with the fewest calls waiting. Returns at once."""
        ...

    def pids(self) -> list[int]:
        """Process ids of the workers, for tests and `pawl doctor`."""
        ...


class Cluster(Protocol):
    """Starts groups, waits for calls. Every wait has a timeout and a message that names it."""

    def start_group(
        self,
        name: str,
        factory: Callable[..., Any],
        kwargs: dict[str, Any],
        *,
        size: int,
        resources: Resources,
        timeout_seconds: float,
    ) -> Group:
        """Begin to start `size` workers, each `factory(**kwargs)`. `wait_ready` waits for them."""
        ...

    def wait_ready(self, groups: Sequence[Group], timeout_seconds: float) -> None:
        """Return when every worker of `groups` is placed and built.

        Raises:
            WaitTimeoutError: some are not; names them and the resources they wait for.
            PawlError: what a worker's constructor raised.
        """
        ...

    def wait_any(self, calls: Sequence[Call], timeout_seconds: float) -> list[Call]:
        """The calls that have finished; waits until at least one has.

        Raises:
            WaitTimeoutError: none finished in time; names what was waited for.
        """
        ...

    def result(self, call: Call, timeout_seconds: float) -> Any:
        """What the call returned.

        Raises:
            WorkerLostError: the worker died; whether the call took effect is unknown.
            WaitTimeoutError: it did not finish in time.
            PawlError: what the method itself raised.
        """
        ...

    def close(self) -> None:
        """Stop every worker that this cluster started."""
        ...
