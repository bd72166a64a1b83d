"""From many verdicts to one feedback per trajectory, and from feedback to pass@k.

Pure functions: scoring knows nothing of pairing, so the same feedback serves any preference builder.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Literal

from pydantic import Field

from policies.base.component import Settings
from policies.base.errors import ArtifactError
from policies.base.records import (
    Comparison,
    Feedback,
    Prompt,
    ScoredGroup,
    Span,
    StepScore,
    Trajectory,
    TrajectoryStatus,
    Verdict,
    VerdictStatus,
)


class FeedbackSettings(Settings):
    """Settings by which verdicts become feedback."""

    desirable_at: float = Field(default=0.5, ge=0, le=1)
    """Lowest weighted mean score at which a trajectory counts as right (desirable)."""
    on_error: Literal["unusable", "ignore_source"] = "unusable"
    """What one failed verdict does: leave the trajectory (of a step-level verdict: the step) out, or judge it by the
    other sources alone."""


def aggregate(
    prompt: Prompt,
    trajectories: Sequence[Trajectory],
    verdicts: Sequence[Verdict],
    comparisons: Sequence[Comparison],
    settings: FeedbackSettings,
    weights: Mapping[str, float] | None = None,
) -> ScoredGroup:
    """Join the verdicts on one prompt's trajectories.

    Args:
        prompt: the prompt of all trajectories.
        trajectories: all attempts at it.
        verdicts: opinions on them, in any order; a judge's win rate is a verdict like any other.
        comparisons: what pairwise judges saw, passed on for preference builders.
        settings: threshold and treatment of errors.
        weights: share of each source in the mean; 1 where none is given.

    Raises:
        ArtifactError: a verdict is about a trajectory that is not here: the files do not belong together.
    """
    by_trajectory: dict[str, list[Verdict]] = {trajectory.id: [] for trajectory in trajectories}
    for verdict in verdicts:
        if verdict.trajectory_id not in by_trajectory:
            raise ArtifactError(
                f"a verdict of {verdict.source!r} is about trajectory {verdict.trajectory_id!r}, which is not among "
                f"the trajectories of prompt {prompt.id!r}. "
                "Fix: delete the verdict file and its marker; it is then made again"
            )
        by_trajectory[verdict.trajectory_id].append(verdict)
    return ScoredGroup(
        prompt=prompt,
        trajectories=tuple(trajectories),
        feedback=tuple(
            _feedback(trajectory, by_trajectory[trajectory.id], settings, weights or {})
            for trajectory in trajectories
        ),
        comparisons=tuple(comparisons),
        weights=dict(weights or {}),
    )


def _feedback(
    trajectory: Trajectory,
    verdicts: Sequence[Verdict],
    settings: FeedbackSettings,
    weights: Mapping[str, float],
) -> Feedback:
    # A verdict on a span is a step score: it says nothing of the outcome, nor does its failure.
    on_outcome = [verdict for verdict in verdicts if verdict.span is None]
    reason = _reason_to_leave_out(on_outcome, settings)
    if trajectory.status is TrajectoryStatus.ERROR:
        reason = "rollout_error"
    score = None if reason else _weighted_mean(on_outcome, weights)
    return Feedback(
        trajectory_id=trajectory.id,
        score=score,
        desirable=None if score is None else score >= settings.desirable_at,
        unusable_because=reason,
        verdicts=tuple(verdicts),
        steps=_step_scores(verdicts, settings, weights),
    )


def _step_scores(
    verdicts: Sequence[Verdict], settings: FeedbackSettings, weights: Mapping[str, float]
) -> tuple[StepScore, ...]:
    """Steps with a usable score. A step whose verdict failed has no label; the others and the outcome keep theirs."""
    by_span: defaultdict[tuple[int, int, int], list[Verdict]] = defaultdict(list)
    for verdict in verdicts:
        if verdict.span is not None:
            span = verdict.span
            by_span[span.turn, span.start, span.end].append(verdict)
    found = []
    for (turn, start, end), of_one in sorted(by_span.items()):
        if _reason_to_leave_out(of_one, settings) is not None:
            continue
        score = _weighted_mean(of_one, weights)
        span = Span(turn=turn, start=start, end=end)
        found.append(StepScore(span=span, score=score, desirable=score >= settings.desirable_at))
    return tuple(found)


def _reason_to_leave_out(verdicts: Sequence[Verdict], settings: FeedbackSettings) -> str | None:
    """Tell why the verdicts on one thing, a trajectory or a step, give no score."""
    failed = next((v.source for v in verdicts if v.status is VerdictStatus.ERROR), None)
    is_scored = any(_counts(v) for v in verdicts)
    if failed is not None and (settings.on_error == "unusable" or not is_scored):
        return f"verifier_error:{failed}"
    if is_scored:
        return None
    return "all_abstained" if verdicts else "no_verdict"


def _counts(verdict: Verdict) -> bool:
    """Tell whether a verdict has a part in a mean: a score that its source has no confidence in is an abstention."""
    return verdict.score is not None and verdict.confidence > 0


def _weighted_mean(verdicts: Sequence[Verdict], weights: Mapping[str, float]) -> float:
    """Mean over sources, each with its weight times its confidence; within a source, weighted by confidence."""
    by_source: defaultdict[str, list[Verdict]] = defaultdict(list)
    for verdict in verdicts:
        if _counts(verdict):
            by_source[verdict.source].append(verdict)
    scores: list[float] = []
    shares: list[float] = []
    for source, of_one in by_source.items():
        confidences = [v.confidence for v in of_one]
        score = _mean([v.score or 0.0 for v in of_one], confidences)
        shares.append(weights.get(source, 1.0) * math.fsum(confidences) / len(of_one))
        scores.append(score)
    return min(1.0, max(0.0, _mean(scores, shares)))  # rounding can step over the ends by one unit


def _mean(values: Sequence[float], weights: Sequence[float]) -> float:
    """Weighted mean; of equal values exactly that value, so that no threshold is missed by rounding."""
    if len(set(values)) == 1:
        return values[0]
    return math.fsum(v * w for v, w in zip(values, weights, strict=True)) / math.fsum(weights)


def pass_at_k(num_samples: int, num_correct: int, k: int) -> float:
    """Chance that k samples drawn without replacement hold a correct one: 1 - C(n-c, k) / C(n, k).

    Chen et al. 2021 (arXiv 2107.03374), the unbiased estimator.

    Example:
        >>> pass_at_k(4, 1, 2)
        0.5
    """
    if not 1 <= k <= num_samples or not 0 <= num_correct <= num_samples:
        raise ValueError(f"pass@{k} of {num_correct} correct among {num_samples} is not defined")
    return 1.0 - math.comb(num_samples - num_correct, k) / math.comb(num_samples, k)


def powers_of_two(largest: int) -> list[int]:
    """1, 2, 4, ... up to `largest`: the k for which pass@k is reported."""
    return [1 << i for i in range(largest.bit_length())]
