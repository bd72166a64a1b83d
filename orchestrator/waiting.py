"""Waiting for workers with an end, a reason, and an ear for Ctrl-C."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

from orchestrator.stopping import StopRequest
from policies.errors import WaitTimeoutError
from workers.cluster import Call, Cluster

SLICE_SECONDS = 0.5
"""How often a long wait looks up: for a stop request and for progress."""


def wait_for_any(
    cluster: Cluster,
    calls: Sequence[Call],
    timeout_seconds: float,
    *,
    look_up: Callable[[], None] | None = None,
) -> list[Call]:
    """The finished calls among `calls`, waiting in slices and calling `look_up` between them.

    Raises:
        WaitTimeoutError: none finished within `timeout_seconds`.
    """
    deadline = time.monotonic() + timeout_seconds
    while True:
        left = deadline - time.monotonic()
        try:
            return cluster.wait_any(calls, max(0.0, min(SLICE_SECONDS, left)))
        except WaitTimeoutError:
            if time.monotonic() >= deadline:
                # Once more with the whole timeout's message: it names the calls and the setting.
                raise
        if look_up is not None:
            look_up()


def wait_for_result(
    cluster: Cluster,
    call: Call,
    timeout_seconds: float,
    *,
    stop: StopRequest,
    look_up: Callable[[], None] | None = None,
) -> Any:
    """What `call` returned; a stop request ends the wait at once."""

    def between() -> None:
        stop.check()
        if look_up is not None:
            look_up()

    wait_for_any(cluster, [call], timeout_seconds, look_up=between)
    return cluster.result(call, 60.0)
