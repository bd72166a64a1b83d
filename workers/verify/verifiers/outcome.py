"""Score what the environment says of the whole episode; abstain where there was none."""

from __future__ import annotations

from policies.base.records import Prompt, Trajectory, Verdict
from workers.verify.verifier import Verifier


class EpisodeOutcome(Verifier):
    """Reads `Trajectory.outcome`: for the strategy `episode`, e.g. 1.0 for a game that was won."""

    def verify(self, prompt: Prompt, trajectory: Trajectory) -> Verdict:
        if trajectory.outcome is None:
            return self.abstain(trajectory, "no environment said how the episode ended")
        return self.scored(trajectory, trajectory.outcome, f"ended by {trajectory.ending}")
