"""Tells what the workers of a run do now, from the file that its driver keeps: for `pawl status` and `pawl doctor`."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

from orchestrator.runs.folder import RunFolder
from policies.base.plain_text import duration, number, one_line

STALE_SECONDS = 15.0
"""A driver that waits for workers writes every second: an older file means that it does something else, or hangs."""


def read_activity(folder: RunFolder) -> dict[str, Any] | None:
    """`activity.json` with `age_seconds`; None when no driver works, or has not waited for a worker yet."""
    try:
        found = json.loads(folder.activity.read_text(encoding="utf-8"))
        written = datetime.fromisoformat(found["at"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
    age = max(0.0, (datetime.now(UTC) - written).total_seconds())
    return {**found, "age_seconds": round(age, 1)}


def activity_lines(activity: dict[str, Any]) -> list[str]:
    """One line per open call: which worker does what, since when, how far, and how long it has been quiet."""
    age = float(activity["age_seconds"])
    lines = []
    for row in activity.get("calls", ()):
        facts = [f"for {duration(float(row['seconds']) + age)}"]
        facts += [f"{number(n)} {name}" for name, n in row.get("counts", {}).items()]
        quiet = row.get("quiet_seconds")
        if quiet is not None and quiet + age >= STALE_SECONDS:
            facts.append(f"no sign of life for {duration(float(quiet) + age)}")
        if not row.get("running"):
            facts.append(one_line(row.get("standing", ""), 60))
        where = row.get("process")
        lines.append(
            f"{one_line(row['worker'], 24):<12} {one_line(row['call'], 60):<28} {', '.join(facts)}"
            + (f"  ({one_line(where, 60)})" if where else "")
        )
    if age >= STALE_SECONDS:
        lines.append(f"the driver last looked {duration(age)} ago")
    return lines
