"""Summarises a shard for each verifier: counts, sums, commonest errors, numbers that functions gave besides."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

from policies.base.records import Verdict, VerdictStatus

Summary = dict[str, Any]

MAX_SUMMARY_BYTES = 1000
NUM_TOP_ERRORS = 3
MAX_METRICS = 8
"""Metrics of one verifier that reach the driver, the first ones by name; all stand beside the verdicts on disk."""


def summarise_source(verdicts: Sequence[Verdict]) -> Summary:
    """Counts and sums over the verdicts of one verifier: what the driver divides, and the commonest errors."""
    statuses = Counter(verdict.status for verdict in verdicts)
    errors = Counter(verdict.error for verdict in verdicts if verdict.error is not None)
    ranked = sorted(errors.items(), key=lambda item: (-item[1], item[0]))
    metrics = _sum_metrics(verdicts)
    return {
        **({"metrics": metrics} if metrics else {}),
        "scored": statuses[VerdictStatus.SCORED],
        "abstained": statuses[VerdictStatus.ABSTAINED],
        "errors": statuses[VerdictStatus.ERROR],
        "score_sum": math.fsum(v.score for v in verdicts if v.score is not None),
        "seconds": round(math.fsum(v.seconds for v in verdicts), 6),
        "top_errors": [[text, count] for text, count in ranked[:NUM_TOP_ERRORS]],
    }


def _sum_metrics(verdicts: Sequence[Verdict]) -> dict[str, dict[str, float]]:
    """Sum and count of every number that came with verdicts, by name."""
    found: dict[str, list[float]] = {}
    for verdict in verdicts:
        for name, value in verdict.metrics.items():
            found.setdefault(name, []).append(value)
    return {
        name: {"sum": math.fsum(found[name]), "count": len(found[name])}
        for name in sorted(found)[:MAX_METRICS]
    }


def within_budget(summary: Summary) -> Summary:
    """Shorten error messages, then leave them out, then metrics, until the summary is small enough for the driver."""
    sources: dict[str, Summary] = summary.get("sources", {})
    messages = {name: source["top_errors"] for name, source in sources.items()}
    for length in (300, 160, 80, 40, 0):
        for name, source in sources.items():
            source["top_errors"] = [[text[:length], n] for text, n in messages[name] if length]
        if len(json.dumps(summary)) <= MAX_SUMMARY_BYTES:
            return summary
    for source in sources.values():  # still too many verifiers with too many numbers
        source.pop("metrics", None)
    return summary
