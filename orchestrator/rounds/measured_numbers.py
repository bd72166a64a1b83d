"""Joins the numbers that workers measured over the shards of a phase, and warns of what could not be measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from orchestrator.flow.task import Summary
from orchestrator.rounds.context import RoundScope
from policies.base.measured import ERRORS, reduced


def measured_numbers(
    scope: RoundScope, summaries: Mapping[str, Sequence[Summary]]
) -> dict[str, float]:
    """Join the numbers; `metric/<name>/errors` counts the prompts that a metric failed on, and people are warned."""
    rows = [summary for of_task in summaries.values() for summary in of_task]
    failed: dict[str, float] = {}
    first: dict[str, str] = {}
    for row in rows:
        for name, (count, error) in row.get(ERRORS, {}).items():
            failed[name] = failed.get(name, 0.0) + count
            first.setdefault(name, error)
    for name, count in sorted(failed.items()):
        scope.run.events.warn(
            f"metrics: {name!r} could not measure {count:g} prompts and leaves them out; the first: "
            f"{first[name]}",
            round_index=scope.index,
        )
    return reduced(rows) | {f"metric/{name}/errors": n for name, n in sorted(failed.items())}
