"""Preference builders: from judged trajectories to training examples, counting everything that is dropped."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

from policies.component import Component, Family
from policies.examples import Example, ExampleKind
from policies.records import Feedback, ScoredGroup, Trajectory, TrajectoryStatus


@dataclass
class Built:
    """What one group gave: examples, and the reasons for what was left out."""

    examples: list[Example] = field(default_factory=list)
    dropped: Counter[str] = field(default_factory=Counter)


@dataclass(frozen=True)
class Candidate:
    """A trajectory that can be learned from, with its feedback."""

    trajectory: Trajectory
    feedback: Feedback
    score: float


class PreferenceBuilder(Component):
    """Turns one `ScoredGroup` into examples of one kind. Pure: the same group and generator give the same examples."""

    kind: ClassVar[ExampleKind]

    class Config(Component.Config):
        """Settings that every builder has."""

        drop_truncated: bool = False
        """Leave out trajectories that ran into the token budget (their terminator is missing)."""

    def __init__(self, config: Config) -> None:
        self.config = config

    def build(self, group: ScoredGroup, rng: random.Random) -> Built:
        """Return the examples of `group`, drawing any random choice from `rng`."""
        raise NotImplementedError

    def candidates(self, group: ScoredGroup, built: Built) -> list[Candidate]:
        """The usable trajectories of `group`; every other one is counted in `built.dropped` with its reason.

        Duplicates (equal policy tokens) are kept once.
        """
        kept: list[Candidate] = []
        seen: set[tuple[int, ...]] = set()
        for trajectory, feedback in zip(group.trajectories, group.feedback, strict=True):
            reason = self._reason_to_drop(trajectory, feedback, seen)
            if reason is not None:
                built.dropped[reason] += 1
                continue
            assert feedback.score is not None
            seen.add(trajectory.token_ids)
            kept.append(Candidate(trajectory, feedback, feedback.score))
        return kept

    def _reason_to_drop(
        self, trajectory: Trajectory, feedback: Feedback, seen: set[tuple[int, ...]]
    ) -> str | None:
        if trajectory.status is TrajectoryStatus.ERROR:
            return "rollout_error"
        if feedback.unusable_because is not None or feedback.score is None:
            return f"unusable: {feedback.unusable_because or 'no score'}"
        if not any(trajectory.loss_mask):
            return "nothing_to_learn_from"
        if self.config.drop_truncated and trajectory.status is TrajectoryStatus.TRUNCATED:
            return "truncated"
        if trajectory.token_ids in seen:
            return "duplicate"
        return None


PREFERENCES = Family("preference builder", package="policies.preferences", base=PreferenceBuilder)


def merge_counts(counts: Sequence[dict[str, int]]) -> dict[str, int]:
    """Add up counters given as plain dicts."""
    total: Counter[str] = Counter()
    for count in counts:
        total.update(count)
    return dict(sorted(total.items()))
