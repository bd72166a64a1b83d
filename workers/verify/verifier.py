"""The verifier seam: one trajectory in, one verdict out; a failure is an error, never a score."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from pydantic import Field

from policies.base.bounds import MAX_COEFFICIENT, MAX_SECONDS
from policies.base.component import Component, Family
from policies.base.component_walk import stated_requirements
from policies.base.records import Prompt, Trajectory, Verdict, VerdictStatus


class Verifier(Component):
    """Scores a trajectory against its prompt. Runs in a process of its own, with a timeout."""

    class Config(Component.Config):
        """Settings that every verifier has."""

        name: str | None = None
        """Name in metrics and verdicts; the type by default. Must be unique in a run."""
        weight: float = Field(default=1.0, gt=0, le=MAX_COEFFICIENT)
        """Share of this score in the weighted mean over verifiers and judges."""
        timeout_seconds: float = Field(default=10.0, gt=0, le=MAX_SECONDS)
        """Longest time for one trajectory; after it the process is killed and the verdict is an error. A call about all
        attempts at a prompt has so much for each of them."""
        level: Literal["trajectory", "step"] = "trajectory"
        """Grade whole trajectories, or every step that the policy wrote (`rollout.steps` says what a step is)."""

        @property
        def source(self) -> str:
            return self.name or self.type

    def __init__(self, config: Config) -> None:
        self.config = config

    def prepare(self) -> None:
        """Load what `verify` needs; runs once in the verifier's process, within its start-up timeout."""

    def check_prompt(self, prompt: Prompt) -> None:
        """Raise `VerificationError` when no attempt at `prompt` could be judged: no answer, no tests.

        Called for every prompt before a run starts, in the driver: it must be quick and import nothing heavy.
        """

    def reference_completion(self, prompt: Prompt) -> str | None:
        """A completion that must be scored 1, made of a solution that the prompt brings; None where it brings none.

        Before a run, `pawl plan` and `pawl run` let `verify` judge it, in the verifier's own process.
        """
        return None

    @property
    def takes_groups(self) -> bool:
        """True if `verify_group` is called with all attempts at a prompt, because they are judged by comparison."""
        return False

    def described(self, prompt: Prompt) -> str:
        """Describe how a function is called for `prompt`, in a line for `pawl plan`; empty without a function."""
        return ""

    @property
    def code(self) -> str:
        """The setting that names the verifier's code, for messages."""
        return f"verifiers[...].type = {self.config.type}"

    def probe_problem(self, prompt: Prompt, attempts: Sequence[Trajectory], *, error: str) -> str:
        """Say in four parts why a run must not start, after a try; empty where nothing is wrong.

        Args:
            prompt: a real prompt.
            attempts: made up, and already judged.
            error: the first error, where all verdicts on them were errors; else empty.
        """
        return ""

    def lacks_answer(self, prompt: Prompt) -> bool:
        """Tell whether a function has a parameter for the answer that must be filled, and `prompt` has no answer."""
        return False

    def verify(self, prompt: Prompt, trajectory: Trajectory) -> Verdict:
        """Return the verdict on `trajectory`. Whatever this raises becomes an error verdict."""
        raise NotImplementedError

    def verify_group(self, prompt: Prompt, trajectories: Sequence[Trajectory]) -> list[Verdict]:
        """Return the verdicts on all attempts at `prompt`, in order; asked where `takes_groups`."""
        return [self.verify(prompt, trajectory) for trajectory in trajectories]

    def scored(self, trajectory: Trajectory, score: float, rationale: str = "") -> Verdict:
        """A verdict with a score in [0, 1]; with any finite one where `Config.requires()` says `raw_scores`."""
        return Verdict(
            source=self.config.source,
            trajectory_id=trajectory.id,
            status=VerdictStatus.SCORED,
            score=score,
            rationale=rationale,
            raw=stated_requirements(self.config).raw_scores,
        )

    def abstain(self, trajectory: Trajectory, rationale: str) -> Verdict:
        """No opinion: the trajectory is outside what this verifier can decide."""
        return Verdict(
            source=self.config.source,
            trajectory_id=trajectory.id,
            status=VerdictStatus.ABSTAINED,
            rationale=rationale,
        )

    def failed(self, trajectory: Trajectory, error: str) -> Verdict:
        """No verdict: the verifier itself went wrong. Never a score."""
        return Verdict(
            source=self.config.source,
            trajectory_id=trajectory.id,
            status=VerdictStatus.ERROR,
            error=error,
        )


def wrap_function(reference: str) -> dict[str, Any]:
    """Settings of the `callable` verifier for a plain function named by `reference`."""
    return {"type": "callable", "function": reference}


VERIFIERS = Family(
    "verifier", package="workers.verify.verifiers", base=Verifier, wrap_function=wrap_function
)
