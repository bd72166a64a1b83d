"""From many verdicts to one feedback per trajectory, and from feedback to pass@k.

Pure functions: scoring knows nothing of pairing, so the same feedback serves any preference builder.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence

from policies.base.component import create
from policies.base.errors import ArtifactError, ConfigurationError, PawlError, boundary, explain
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
from policies.base.source_scores import counts, scores_by_source
from workers.scoring.combiner import Combiner, Scores
from workers.scoring.feedback_settings import FeedbackSettings
from workers.scoring.normalize import normalized


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
    return _Scoring(settings, weights or {}).group(prompt, trajectories, by_trajectory, comparisons)


class _Scoring:
    """Scores of one group, by the settings of a run."""

    def __init__(self, settings: FeedbackSettings, weights: Mapping[str, float]) -> None:
        self._settings, self._weights = settings, weights
        self._combiner: Combiner = create(settings.combine)
        self._raw = False

    def group(
        self,
        prompt: Prompt,
        trajectories: Sequence[Trajectory],
        by_trajectory: Mapping[str, Sequence[Verdict]],
        comparisons: Sequence[Comparison],
    ) -> ScoredGroup:
        """The attempts at a prompt with their feedback."""
        reasons: dict[str, str | None] = {}
        said: dict[str, Scores] = {}
        for trajectory in trajectories:
            # A verdict on a span is a step score: it says nothing of the outcome, nor does its failure.
            on_outcome = [v for v in by_trajectory[trajectory.id] if v.span is None]
            reason = _reason_to_leave_out(on_outcome, self._settings)
            if trajectory.status is TrajectoryStatus.ERROR:
                reason = "rollout_error"
            reasons[trajectory.id] = reason
            if reason is None:
                said[trajectory.id] = scores_by_source(on_outcome, self._weights)
        combined = self._combined(list(said.values()))
        scores = {i: score for i, (score, _) in zip(said, combined, strict=True)}
        right = {i: bit for i, (_, bit) in zip(said, combined, strict=True)}
        reasons |= {i: "not_combined" for i, score in scores.items() if score is None}
        steps = self._step_scores(by_trajectory)
        return ScoredGroup(
            prompt=prompt,
            trajectories=tuple(trajectories),
            feedback=tuple(
                Feedback(
                    trajectory_id=t.id,
                    score=scores.get(t.id),
                    desirable=right.get(t.id),
                    unusable_because=reasons[t.id],
                    verdicts=tuple(by_trajectory[t.id]),
                    steps=tuple(steps[t.id]),
                )
                for t in trajectories
            ),
            comparisons=tuple(comparisons),
            weights=dict(self._weights),
            raw=self._raw,
        )

    def _step_scores(
        self, by_trajectory: Mapping[str, Sequence[Verdict]]
    ) -> defaultdict[str, list[StepScore]]:
        """Steps with a usable score. One whose verdict failed has no label; the others and the outcome keep theirs."""
        spans: list[tuple[str, Span]] = []
        scores: list[Scores] = []
        for trajectory_id, verdicts in by_trajectory.items():
            by_span: defaultdict[tuple[int, int, int], list[Verdict]] = defaultdict(list)
            for verdict in verdicts:
                if verdict.span is not None:
                    span = verdict.span
                    by_span[span.turn, span.start, span.end].append(verdict)
            for (turn, start, end), of_one in sorted(by_span.items()):
                if _reason_to_leave_out(of_one, self._settings) is None:
                    spans.append((trajectory_id, Span(turn=turn, start=start, end=end)))
                    scores.append(scores_by_source(of_one, self._weights))
        found: defaultdict[str, list[StepScore]] = defaultdict(list)
        combined = self._combined(scores)
        for (trajectory_id, span), (score, desirable) in zip(spans, combined, strict=True):
            if score is not None and desirable is not None:
                found[trajectory_id].append(StepScore(span=span, score=score, desirable=desirable))
        return found

    def _combined(self, group: Sequence[Scores]) -> list[tuple[float | None, bool | None]]:
        """The usable scores of attempts or steps at one prompt, and whether each is right."""
        if not group:
            return []
        group = normalized(group, self._settings.normalize)
        raw = {name: scores[name].raw for scores in group for name in scores}
        may_leave = self._settings.combine.gives_raw(raw)
        self._raw = self._raw or may_leave
        with boundary(PawlError, f"combiner {self._settings.combine.type!r} failed"):
            found = list(self._combiner.combine(group))
        if len(found) != len(group) or not all(_fits(score, may_leave) for score in found):
            raise ConfigurationError(
                explain(
                    f"a combiner must return a score{'' if may_leave else ' in [0, 1]'}, or None, for each attempt",
                    value=f"{found} for {len(group)}"[:120],
                    where=f"feedback.combine = {self._settings.combine.type}",
                    fix="return as many as `combine` was given, in order; for other scores let `gives_raw` say so",
                )
            )
        decisive = map(self._combiner.decisive, group, found)
        return [(s, self._is_desirable(s, d)) for s, d in zip(found, decisive, strict=True)]

    def _is_desirable(self, score: float | None, decisive: float | None) -> bool | None:
        if score is None or decisive is None:
            return None
        return decisive >= self._settings.desirable_at


def _fits(score: float | None, may_leave: bool) -> bool:
    return score is None or (math.isfinite(score) if may_leave else 0.0 <= score <= 1.0)


def _reason_to_leave_out(verdicts: Sequence[Verdict], settings: FeedbackSettings) -> str | None:
    """Tell why the verdicts on one thing, a trajectory or a step, give no score."""
    failed = next((v.source for v in verdicts if v.status is VerdictStatus.ERROR), None)
    is_scored = any(counts(v) for v in verdicts)
    if failed is not None and (settings.on_error == "unusable" or not is_scored):
        return f"verifier_error:{failed}"
    if is_scored:
        return None
    return "all_abstained" if verdicts else "no_verdict"


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
