"""A cluster inside the driver: each call runs when it is submitted. Ships for tests and debugging."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from policies.base.errors import PawlError
from workers.cluster.gpus import showing_at_most
from workers.cluster.heartbeat import reporting
from workers.cluster.seam import NO_FILES, Call, Files, Group, GroupSpec


@dataclass(eq=False)
class InlineCall:
    """A call that has already run."""

    label: str
    value: Any = None
    error: PawlError | None = None
    running = False

    def standing(self) -> str:
        return "has run"


class InlineGroup:
    """Plain objects; calls take turns among them."""

    def __init__(self, name: str, workers: list[Any]) -> None:
        self.name = name
        self._workers = workers
        self._next = 0

    @property
    def size(self) -> int:
        return len(self._workers)

    def submit(
        self,
        method: str,
        *args: Any,
        worker: int | None = None,
        label: str = "",
        report: str = "",
        files: Files = NO_FILES,
    ) -> InlineCall:
        if worker is None:
            worker = self._next
            self._next = (self._next + 1) % len(self._workers)
        call = InlineCall(f"{self.name} {worker}: {method} {label}".strip())
        try:
            with reporting(report):
                call.value = getattr(self._workers[worker], method)(*args)
        except PawlError as error:
            call.error = error
        return call

    def ready(self) -> list[int]:
        return list(range(self.size))

    def restart_with(self, files: Files, /, **kwargs: Any) -> None:
        """Workers of this process live as long as it does: none takes the place of another."""

    def pids(self) -> list[int]:
        return [os.getpid()] * self.size

    def close(self) -> None:
        for worker in self._workers:
            close = getattr(worker, "close", None)
            if close is not None:
                close()


class InlineCluster:
    """No processes, no parallelism, the same contract as the Ray cluster."""

    def __init__(self, *, gpus: int = 0) -> None:
        """Let this process see one GPU, or none, until the cluster is closed.

        Args:
            gpus: that this process may use; of several it takes the first, because one of its workers trains.
        """
        self._groups: list[InlineGroup] = []
        self._gpus = min(1, gpus)
        self._open = contextlib.ExitStack()
        self._open.enter_context(showing_at_most(self._gpus))

    def gpus(self) -> float:
        return self._gpus

    def start_group(self, spec: GroupSpec) -> InlineGroup:
        workers = [spec.worker(**spec.arguments_of(index)) for index in range(spec.size)]
        group = InlineGroup(spec.name, workers)
        self._groups.append(group)
        return group

    def wait_ready(self, groups: Sequence[Group], timeout_seconds: float) -> None:
        """Nothing to wait for: workers are built when the group is started."""

    def wait_any(self, calls: Sequence[Call], timeout_seconds: float) -> list[Call]:
        return list(calls)

    def result(self, call: Call, timeout_seconds: float) -> Any:
        assert isinstance(call, InlineCall)
        if call.error is not None:
            raise call.error
        return call.value

    def abandon(self, call: Call, reason: str) -> None:
        """A call has always ended when its submission returns."""

    def close(self) -> None:
        for group in self._groups:
            group.close()
        self._groups.clear()
        self._open.close()
