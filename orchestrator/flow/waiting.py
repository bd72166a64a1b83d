"""Waiting for workers with an end, a reason, and an ear for Ctrl-C."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from policies.base.errors import WaitTimeoutError, explain
from workers.cluster.seam import Call, Cluster

SLICE_SECONDS = 0.5
"""How often a long wait looks up: for a stop request and for progress."""
_NUM_NAMED = 4


@dataclass(frozen=True)
class Patience:
    """The longest time for which an answer is waited for, and the setting that says so."""

    seconds: float
    setting: str = "cluster.shard_timeout_seconds"


def wait_for_any(
    cluster: Cluster,
    calls: Mapping[Call, Patience],
    heard: Mapping[Patience, float],
    look_up: Callable[[], None] = lambda: None,
) -> list[Call]:
    """The finished calls among `calls`, waiting in slices and calling `look_up` between them.

    Args:
        cluster: that runs the calls.
        calls: each with the patience that it is waited for with.
        heard: when something was last heard of the calls of one patience, on the monotonic clock.
        look_up: called after each slice in which nothing came.

    Raises:
        WaitTimeoutError: of the calls of one patience none finished in time; names the calls, where each stands, and
            the setting.
    """
    while True:
        ends = {patience: heard[patience] + patience.seconds for patience in set(calls.values())}
        left = min(ends.values()) - time.monotonic()
        try:
            return cluster.wait_any(list(calls), max(0.0, min(SLICE_SECONDS, left)))
        except WaitTimeoutError as error:
            for patience, end in ends.items():
                if time.monotonic() >= end:
                    late = [call for call, own in calls.items() if own == patience]
                    raise _nothing_came(late, patience) from error
        look_up()


def _nothing_came(calls: Sequence[Call], patience: Patience) -> WaitTimeoutError:
    named = "; ".join(f"{call.label} ({call.standing()})" for call in calls[:_NUM_NAMED])
    more = f"; and {len(calls) - _NUM_NAMED} more" if len(calls) > _NUM_NAMED else ""
    seconds = patience.seconds
    return WaitTimeoutError(
        explain(
            f"the driver waited {seconds:g} s for an answer of {named}{more}, and none came",
            value=seconds,
            where=patience.setting,
            fix=(
                "`pawl doctor RUN_DIR` says what each worker did last; look at its log in Ray's session folder; raise "
                "the setting if the work is just slow; then `pawl resume`"
            ),
        )
    )
