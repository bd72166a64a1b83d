"""Counts what came of the attempts at each held-out prompt: evaluation metrics and errors are made of these."""

from __future__ import annotations

import math
from collections.abc import Sequence

from policies.base.records import ScoredGroup, TrajectoryStatus


def count_by_prompt(groups: Sequence[ScoredGroup]) -> dict[str, list[float]]:
    """One list per count, with a number for each prompt in order.

    `asked`: attempts; `measured`: those that something graded. Among these `right`, `score_sum`, `ended` (by
    themselves, before any limit) and `ended_right`.
    """
    found: dict[str, list[float]] = {
        name: [] for name in ("asked", "measured", "right", "score_sum", "ended", "ended_right")
    }
    for group in groups:
        graded = [
            (feedback, trajectory.status is TrajectoryStatus.COMPLETE)
            for feedback, trajectory in zip(group.feedback, group.trajectories, strict=True)
            if feedback.score is not None
        ]
        row = (
            len(group.feedback),
            len(graded),
            sum(f.desirable is True for f, _ in graded),
            math.fsum(f.score or 0.0 for f, _ in graded),
            sum(ended for _, ended in graded),
            sum(ended and f.desirable is True for f, ended in graded),
        )
        for column, value in zip(found.values(), row, strict=True):
            column.append(value)
    return found
