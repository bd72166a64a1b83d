"""Preference builders: from judged trajectories to training examples, counting everything that is dropped."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from pydantic import Field

from policies.base.bounds import MAX_TOKENS
from policies.base.component import Component, Family
from policies.base.errors import explain
from policies.base.records import (
    Ending,
    Feedback,
    ScoredGroup,
    StopReason,
    ToolCallStatus,
    Trajectory,
    TrajectoryStatus,
)
from policies.base.source_scores import spread
from policies.examples.kind import Example
from policies.examples.stored import kind_of

_ROUNDING = 1e-9
"""Scores are means of means: nearer than this they are equal."""


@dataclass
class Built:
    """Yield of one group: examples, and the reasons for what was left out."""

    examples: list[Example] = field(default_factory=list)
    dropped: Counter[str] = field(default_factory=Counter)


@dataclass(frozen=True)
class Candidate:
    """A trajectory that can be learned from, with its feedback."""

    trajectory: Trajectory
    feedback: Feedback
    score: float
    unfit_to_win: str | None = None
    """Why it must not be imitated or be the chosen side of a pair, although it may be the rejected one."""


class PreferenceBuilder(Component):
    """Turns one `ScoredGroup` into examples of one kind. Pure: the same group and generator give the same examples.

    What every builder leaves out is counted by trajectory: `rollout_error`, `unusable: ...`, `nothing_to_learn_from`,
    `too_long`, `truncated`, `failed_call`, `duplicate`, and with `max_spread` `sources_disagree`.
    """

    kind: ClassVar[type[Example]]
    """The kind that it makes; the name of one that ships will do."""
    kind_name: ClassVar[str] = ""
    """The kind's name; follows from `kind`, and is known where the kind is not imported."""
    fewest_sequences: ClassVar[int] = 1
    """The kind's `fewest_sequences`; follows from `kind`."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "kind" in vars(cls):
            cls.kind = kind = kind_of(cls.kind, cls)
            cls.kind_name, cls.fewest_sequences = kind.kind_name, kind.fewest_sequences

    class Config(Component.Config):
        """Settings that every builder has."""

        max_tokens: int | None = Field(default=None, ge=1, le=MAX_TOKENS)
        """Leave out trajectories with more tokens than this, prompt and observations included; null keeps all."""
        drop_truncated: bool | Literal["right"] = "right"
        """Leave out trajectories that ran into a limit of tokens or turns (their end is missing): `right` only those
        that would be learned as good ones, so that they can still lose; true drops all; false takes them like any
        other. Those that ended in an error are never learned from."""
        drop_failed_calls: Literal["no", "right", "all"] = "no"
        """Leave out trajectories in which a tool call did not end well before the answer: `right` only those that would
        be learned as good ones (the rule of arXiv 2409.02392), `all` of them (its released script), or `no` one."""
        keep_duplicates: bool = False
        """Keep trajectories with the same tokens as another one of their prompt; off, the first of them is kept."""
        weight_by: Literal["example", "prompt"] = Field(
            default="example", exclude_if=lambda value: value == "example"
        )  # left out of the dump by default, so that what files are made from has the digest that it always had
        """What weighs the same in the loss: every example, or every prompt (each of its n examples then weighs 1/n)."""
        max_spread: float | None = Field(
            default=None, ge=0, le=1, exclude_if=lambda value: value is None
        )
        """Leave out trajectories on which sources disagree by more than this: the highest minus the lowest of their
        scores in [0, 1] (`policies.base.source_scores.spread`); null keeps all."""

        def refused_scores(self, raw: bool) -> str | None:
            """Say in four parts why these settings do not fit scores that are raw, or in [0, 1]; None where they do."""
            return None

    def __init__(self, config: Config) -> None:
        self.config = config

    def build(self, group: ScoredGroup, rng: random.Random) -> Built:
        """Return the examples of `group`, drawing any random choice from `rng`."""
        raise NotImplementedError

    def build_labelled(self, group: ScoredGroup, rng: random.Random) -> Built:
        """Return what `build` gives, with weights, and with what the group's sources say of each example."""
        built = self.build(group, rng)
        weight = 1.0 / len(built.examples) if built.examples else 1.0
        built.examples = [
            _weighted(example.labelled(group), weight)
            if self.config.weight_by == "prompt"
            else example.labelled(group)
            for example in built.examples
        ]
        return built

    def candidates(
        self, group: ScoredGroup, built: Built, *, keep_duplicates: bool = False
    ) -> list[Candidate]:
        """The usable trajectories of `group`; every other one is counted in `built.dropped` with its reason.

        Those with equal tokens are kept once, unless `keep_duplicates` is set or given. What may lose only is dropped
        here when the feedback calls it desirable, and marked `unfit_to_win` when not.
        """
        kept: list[Candidate] = []
        seen: set[tuple[int, ...]] = set()
        for trajectory, feedback in zip(group.trajectories, group.feedback, strict=True):
            unfit = self._unfit_to_win(trajectory)
            reason = self._reason_to_drop(trajectory, feedback, unfit)
            once = not (self.config.keep_duplicates or keep_duplicates)
            if reason is None and once and trajectory.token_ids in seen:
                reason = "duplicate"
            if reason is not None:
                built.dropped[reason] += 1
                continue
            assert feedback.score is not None
            seen.add(trajectory.token_ids)
            kept.append(Candidate(trajectory, feedback, feedback.score, unfit))
        return kept

    def _reason_to_drop(
        self, trajectory: Trajectory, feedback: Feedback, unfit: str | None
    ) -> str | None:
        config = self.config
        if trajectory.status is TrajectoryStatus.ERROR:
            return "rollout_error"
        if feedback.unusable_because is not None or feedback.score is None:
            return f"unusable: {feedback.unusable_because or 'no score'}"
        if not any(trajectory.loss_mask):
            return "nothing_to_learn_from"
        if config.max_tokens is not None and len(trajectory.token_ids) > config.max_tokens:
            return "too_long"
        if config.max_spread is not None and (spread(feedback) or 0.0) > config.max_spread:
            return "sources_disagree"
        if config.drop_truncated is True and was_cut(trajectory):
            return "truncated"
        if config.drop_failed_calls == "all" and has_failed_call(trajectory):
            return "failed_call"
        return unfit if feedback.desirable else None

    def _unfit_to_win(self, trajectory: Trajectory) -> str | None:
        if self.config.drop_truncated == "right" and was_cut(trajectory):
            return "truncated"
        if self.config.drop_failed_calls == "right" and has_failed_call(trajectory):
            return "failed_call"
        return None


def was_cut(trajectory: Trajectory) -> bool:
    """Tell whether a limit of tokens or turns ended the attempt: what it was about to say is missing.

    An episode that the environment ended is whole, even if the move that ended it ran out of tokens.
    """
    last = next((turn for turn in reversed(trajectory.turns) if turn.role == "policy"), None)
    cut_answer = last is not None and last.stop_reason is StopReason.LENGTH
    return (
        trajectory.status is TrajectoryStatus.TRUNCATED
        or trajectory.ending in (Ending.TURN_LIMIT, Ending.TOKEN_LIMIT)
        or (trajectory.ending is Ending.ANSWERED and cut_answer)
    )


def beats(one: float, other: float, margin: float = 0.0) -> bool:
    """Tell whether the score `one` is above `other`, by at least `margin`; scores that differ by rounding are equal."""
    return one - other > _ROUNDING and one - other >= margin - _ROUNDING


def out_of_range(setting: str, value: float | None, *, raw: bool) -> str | None:
    """Say in four parts that no score in [0, 1] can reach `value`; None for raw scores, or where some can."""
    if raw or value is None or 0.0 <= value <= 1.0:
        return None
    return explain(
        "scores lie in [0, 1], and so do their differences",
        value=value,
        where=f"preferences.{setting}",
        fix=f"set preferences.{setting} to a number in [0, 1]",
    )


def unset_for_raw(settings: PreferenceBuilder.Config, setting: str, *, raw: bool) -> str | None:
    """Say in four parts that a threshold made for scores in [0, 1] stands unset; None where scores are not raw."""
    if not raw or setting in settings.model_fields_set:
        return None
    return explain(
        f"the scores are raw, any numbers, and {setting} was meant for [0, 1]",
        value=dict(settings)[setting],
        where=f"preferences.{setting} (not set)",
        fix=f"set preferences.{setting}: 0.0, or what counts as good; or bring the scores to [0, 1] with "
        "feedback.normalize",
    )


def _weighted(example: Example, weight: float) -> Example:
    return example.model_copy(update={"weight": example.weight * weight})


def has_failed_call(trajectory: Trajectory) -> bool:
    """Tell whether a tool call before the policy's last turn has any status but `ok`."""
    policy_turns = [i for i, turn in enumerate(trajectory.turns) if turn.role == "policy"]
    return any(
        call.status is not ToolCallStatus.OK
        for turn in trajectory.turns[: policy_turns[-1] if policy_turns else None]
        for call in turn.calls
    )


PREFERENCES = Family(
    "preference builder", package="policies.examples.builders", base=PreferenceBuilder
)


def merge_counts(counts: Sequence[dict[str, int]]) -> dict[str, int]:
    """Add up counters given as plain dicts."""
    total: Counter[str] = Counter()
    for count in counts:
        total.update(count)
    return dict(sorted(total.items()))
