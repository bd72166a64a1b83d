"""Several training workers as one: how they find each other, what they add up, and how each wait ends."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any, cast

from policies.base.errors import TrainingError, WaitTimeoutError, explain
from workers.training.job import ProcessGroup
from workers.training.step_log import AVERAGED

if TYPE_CHECKING:
    from torch import Tensor

LOOPBACK = "127.0.0.1"
_listeners: dict[int, socket.socket] = {}
"""Sockets on which this process waits as rank 0, by port: bound when the port is told, so that none else takes it."""


def own_address() -> str:
    """The address under which other machines reach this one; loopback where there is no network."""
    with contextlib.closing(socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) as probe:
        try:
            probe.connect(("192.0.2.1", 9))  # a documentation address: picks a route, sends nothing
            return str(probe.getsockname()[0])
        except OSError:  # no route at all: one machine
            return LOOPBACK


def listen(address: str) -> int:
    """Bind a free port of `address`, and nothing else, for the next group of which this process is rank 0."""
    for old in _listeners.values():
        old.close()
    _listeners.clear()
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    listener.bind((address, 0))
    listener.listen(128)
    port = int(listener.getsockname()[1])
    _listeners[port] = listener
    return port


@dataclass(frozen=True)
class WorkerGroup:
    """The workers of one update, seen from one of them. Alone, every operation gives back what it got."""

    rank: int = 0
    size: int = 1
    sharded: bool = False
    """Each worker holds a share of the model, so whoever writes needs all the others."""

    @property
    def writes(self) -> bool:
        return self.rank == 0

    def total(self, value: Tensor) -> Tensor:
        """Sum over the workers, element by element; the same on all of them."""
        if self.size == 1:
            return value
        import torch.distributed as dist

        summed = value.clone()
        dist.all_reduce(summed)
        return summed

    def agreed(self, wish: bool) -> bool:
        """Tell whether this worker takes part in what rank 0 wishes: alone, unless it needs the others' shares."""
        if not self.sharded:
            return wish and self.writes
        import torch

        asked = torch.tensor([float(wish and self.writes)])
        return bool(self.filled(asked).item())

    def averaged(self, logs: Mapping[str, float]) -> dict[str, float]:
        """A step's values, means over the workers that have one; loss and gradient norm are of all already."""
        if self.size == 1:
            return dict(logs)
        import torch

        sums = torch.zeros(2, len(AVERAGED), dtype=torch.float64)
        for place, name in enumerate(AVERAGED):
            if name in logs:
                sums[0, place], sums[1, place] = float(logs[name]), 1.0
        values, counts = self.total(self._movable(sums)).cpu().tolist()
        means = {
            name: value / count
            for name, value, count in zip(AVERAGED, values, counts, strict=True)
            if count
        }
        return {**logs, **means}

    def mean(self, value: float) -> float:
        """The mean of each worker's value."""
        if self.size == 1:
            return value
        import torch

        return float(self.filled(torch.tensor([value], dtype=torch.float64))[0]) / self.size

    def _movable(self, values: Tensor) -> Tensor:
        """On the device that the group's backend can send from."""
        import torch.distributed as dist

        return values.cuda() if dist.get_backend() == "nccl" else values

    def filled(self, values: Tensor) -> Tensor:
        """`values` of all workers together, where each filled other places and left the rest 0."""
        if self.size == 1:
            return values
        return self.total(self._movable(values)).cpu()

    def require_same(self, value: int, what: str) -> None:
        """Refuse to go on with workers that see different things.

        Raises:
            TrainingError: the workers do not have the same `value`.
        """
        if self.size == 1:
            return
        import torch

        places = torch.zeros(self.size, dtype=torch.int64)
        places[self.rank] = value
        seen = self.filled(places).tolist()
        if len(set(seen)) > 1:
            raise TrainingError(
                explain(
                    f"the training workers do not agree on {what}",
                    value=seen,
                    where="the run folder",
                    fix="put the run folder on storage that every node sees in the same state, and resume",
                )
            )


@contextmanager
def joined(
    place: ProcessGroup | None, *, timeout_seconds: float, device: str, sharded: bool = False
) -> Iterator[WorkerGroup]:
    """Meet the other workers of `place`, and leave them at the end.

    Raises:
        WaitTimeoutError: they did not come in time.
    """
    if place is None or place.world_size == 1:
        yield WorkerGroup()
        return
    import torch.distributed as dist

    with _environment(place):
        _meet(place, timeout_seconds, device)
        try:
            yield WorkerGroup(place.rank, place.world_size, sharded)
        finally:
            # Closing the connections is also how the others learn that this worker gave up.
            dist.destroy_process_group()


def _meet(place: ProcessGroup, timeout_seconds: float, device: str) -> None:
    import torch
    import torch.distributed as dist

    limit = timedelta(seconds=timeout_seconds)
    listener = _listeners.pop(place.port, None) if place.rank == 0 else None
    if place.rank == 0 and listener is None:
        raise TrainingError(
            f"rank 0 does not listen on port {place.port}: open_rendezvous comes first"
        )
    try:
        store = cast(Any, dist).TCPStore(
            place.address,
            place.port,
            place.world_size,
            is_master=place.rank == 0,
            timeout=limit,
            master_listen_fd=None if listener is None else listener.detach(),
        )
        if device == "cuda":
            torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
        dist.init_process_group(
            "nccl" if device == "cuda" else "gloo",
            store=store,
            rank=place.rank,
            world_size=place.world_size,
            timeout=limit,
        )
    except (dist.DistError, RuntimeError) as error:
        raise WaitTimeoutError(
            explain(
                f"training worker {place.rank} of {place.world_size} waited for the others at "
                f"{place.address}:{place.port} and they did not all come: {str(error).splitlines()[0]}",
                value=timeout_seconds,
                where="training.group_timeout_seconds and training.workers",
                fix="see why a worker did not start (`pawl doctor`), open the network between nodes, or wait longer",
            )
        ) from error


@contextmanager
def _environment(place: ProcessGroup) -> Iterator[None]:
    """Return what accelerate reads to find out that it is one of several; put back afterwards."""
    import torch

    devices = torch.cuda.device_count() if torch.cuda.is_available() else 0
    values = {
        "RANK": str(place.rank),
        "WORLD_SIZE": str(place.world_size),
        "LOCAL_RANK": str(place.rank % devices if devices else place.rank % place.local_world_size),
        "LOCAL_WORLD_SIZE": str(place.local_world_size),
        "MASTER_ADDR": place.address,
        "MASTER_PORT": str(place.port),
    }
    if place.address == LOOPBACK:
        values["GLOO_SOCKET_IFNAME"] = "lo"  # gradients do not leave the machine either
    # Set already by TrainWorker; accelerate warns and chooses for itself without it.
    values["OMP_NUM_THREADS"] = os.environ.get("OMP_NUM_THREADS", "1")
    before: dict[str, Any] = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
