"""Settings by which verdicts become feedback."""

from __future__ import annotations

from typing import Annotated, Literal, cast

from pydantic import Field

from policies.base.bounds import Score
from policies.base.component import Settings
from workers.scoring.combiner import COMBINERS, Combiner
from workers.scoring.normalize import Scale, stays_raw


class FeedbackSettings(Settings):
    """Settings by which verdicts become feedback."""

    desirable_at: Score = 0.5
    """Lowest usable score at which a trajectory counts as right (desirable). To be set where scores are raw."""
    on_error: Literal["unusable", "ignore_source"] = "unusable"
    """What one failed verdict does: leave the trajectory (of a step-level verdict: the step) out, or judge it by the
    other sources alone."""
    # Both are left out of the dump by default, so that what files are made from has the digest that it always had.
    combine: Annotated[Combiner.Config, COMBINERS.field()] = Field(
        default_factory=lambda: cast(Combiner.Config, COMBINERS.parse("mean")),
        exclude_if=lambda value: value.type == "mean",
    )
    """How the scores of all verifiers and judges become the usable one; `pawl components combiner` lists the ways."""
    normalize: dict[str, Scale] = Field(default_factory=dict, exclude_if=lambda value: not value)
    """Another scale for the scores of a source, by its name, before they are combined: `rank` (the share of the
    prompt's attempts that it is above), `min_max` (0 the lowest, 1 the highest of them), `sigmoid`, all in [0, 1], or
    `z_score` (standard deviations from their mean). For raw scores such as rewards."""

    def scales(self, raw: dict[str, bool]) -> dict[str, bool]:
        """The same sources after `normalize`: by name, whether scores may be any finite number instead of [0, 1]."""
        return {
            name: stays_raw(self.normalize[name]) if name in self.normalize else is_raw
            for name, is_raw in raw.items()
        }
