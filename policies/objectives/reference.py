"""The weights that a round is compared with: schedules as pure functions of the history, recorded in the run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from policies.base.component import Component, Family
from policies.base.records import Record
from policies.base.requirements import POLICY, ModelRequirement, Requirements


class ReferencePart(Record):
    """One published version and its share. Example: `ReferencePart(version=2, weight=1.0)`."""

    version: int
    weight: float


class ReferencePlan(Record):
    """The reference of one round: a weighted average of published versions, nearly always of just one.

    Example: `ReferencePlan(parts=(ReferencePart(version=2, weight=1.0),))`.
    """

    parts: tuple[ReferencePart, ...]

    @property
    def single(self) -> int | None:
        """The version, when there is exactly one."""
        return self.parts[0].version if len(self.parts) == 1 else None

    def __str__(self) -> str:
        if self.single is not None:
            return f"version {self.single}"
        return " + ".join(f"{p.weight:.3g} x version {p.version}" for p in self.parts)


class ReferenceSchedule(Component):
    """Answers "what is the reference in this round?" from the versions that served, round by round."""

    class Config(Component.Config):
        """Settings that every schedule has."""

        logprobs: Literal["rollout", "recompute"] = "rollout"
        """`rollout`: when the reference is the very policy that sampled, take the log-probs that the sampler
        recorded (no pass needed); any other reference is recomputed, and so is everything for a loss with a reference
        point (KTO), which also needs the log-probs of completions of other prompts, from the same source. `recompute`:
        always a pass of the trainer."""

    @classmethod
    def usual_requirements(cls, config: Component.Config) -> Requirements:
        """Say that an earlier version of the policy lies in memory beside the one that is trained."""
        earlier = ModelRequirement(name=POLICY, set_by="type")
        return super().usual_requirements(config) + Requirements(models=(earlier,))

    def __init__(self, config: Config) -> None:
        self.config = config

    def plan(self, served: Sequence[int]) -> ReferencePlan:
        """Return the reference of the next round.

        Args:
            served: the version accepted at the end of each finished round, round 0 first; the last one is
                the policy that the next round starts from and samples with.
        """
        raise NotImplementedError


REFERENCES = Family("reference", package="policies.objectives.references", base=ReferenceSchedule)
