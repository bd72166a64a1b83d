"""Waiting for workers with an end, a reason, and an ear for Ctrl-C."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

from orchestrator.flow.stopping import StopRequest
from policies.base.errors import WaitTimeoutError, explain
from workers.cluster.seam import Call, Cluster

SLICE_SECONDS = 0.5
"""How often a long wait looks up: for a stop request and for progress."""
_NUM_NAMED = 4


def wait_for_any(
    cluster: Cluster,
    calls: Sequence[Call],
    timeout_seconds: float,
    *,
    setting: str = "cluster.shard_timeout_seconds",
    look_up: Callable[[], None] | None = None,
) -> list[Call]:
    """The finished calls among `calls`, waiting in slices and calling `look_up` between them.

    Raises:
        WaitTimeoutError: none finished within `timeout_seconds`; names the calls, where each stands, and `setting`.
    """
    deadline = time.monotonic() + timeout_seconds
    while True:
        left = deadline - time.monotonic()
        try:
            return cluster.wait_any(calls, max(0.0, min(SLICE_SECONDS, left)))
        except WaitTimeoutError as error:
            if time.monotonic() >= deadline:
                raise _nothing_came(calls, timeout_seconds, setting) from error
        if look_up is not None:
            look_up()


def wait_for_result(
    cluster: Cluster,
    call: Call,
    timeout_seconds: float,
    *,
    stop: StopRequest,
    setting: str = "cluster.shard_timeout_seconds",
    look_up: Callable[[], None] | None = None,
) -> Any:
    """Return what `call` returned; a stop request ends the wait at once."""

    def between() -> None:
        stop.check()
        if look_up is not None:
            look_up()

    wait_for_any(cluster, [call], timeout_seconds, setting=setting, look_up=between)
    return cluster.result(call, 60.0)


def _nothing_came(calls: Sequence[Call], timeout_seconds: float, setting: str) -> WaitTimeoutError:
    named = "; ".join(f"{call.label} ({call.standing()})" for call in calls[:_NUM_NAMED])
    more = f"; and {len(calls) - _NUM_NAMED} more" if len(calls) > _NUM_NAMED else ""
    return WaitTimeoutError(
        explain(
            f"the driver waited {timeout_seconds:g} s for an answer of {named}{more}, and none came",
            value=timeout_seconds,
            where=setting,
            fix=(
                "`pawl doctor RUN_DIR` says what each worker did last; look at its log in Ray's session folder; raise "
                "the setting if the work is just slow; then `pawl resume`"
            ),
        )
    )
