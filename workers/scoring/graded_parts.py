"""Step-level grading: the same verifier or judge, asked about every step that the policy wrote.

A step is asked about through a copy of its trajectory whose `graded` is the step's span: its `completion` is then the
step's text, so that whatever grades whole trajectories grades steps unchanged. The verdict gets the span.
"""

from __future__ import annotations

from typing import Literal

from policies.base.records import Trajectory, Verdict

Level = Literal["trajectory", "step"]
"""What is graded."""


def parts_to_grade(trajectory: Trajectory, level: Level) -> tuple[Trajectory, ...]:
    """The trajectory itself, or a copy for each of its steps that has tokens."""
    if level == "trajectory":
        return (trajectory,)
    return tuple(
        trajectory.model_copy(update={"graded": span})
        for span in trajectory.step_spans
        if span.end > span.start
    )


def verdict_on(part: Trajectory, verdict: Verdict, level: Level) -> Verdict:
    """The verdict on a part as a verdict on the trajectory, with the step that it is about."""
    return verdict if level == "trajectory" else verdict.model_copy(update={"span": part.graded})
