"""Score 1 for an answer that the prompt's row records as the right one, and 0 for one that it records as wrong."""

from __future__ import annotations

from policies.base.errors import VerificationError
from policies.base.recorded_answers import answers_of, refused
from policies.base.records import Prompt, Trajectory, Verdict
from workers.verify.verifier import Verifier


class RecordedChoice(Verifier):
    """Says what the log says of its own answers (`logged_answers`), and nothing of any other attempt.

    Answers are compared by their texts. Held-out prompts are attempted by the policy: grade them with
    `evaluation.verifiers` of another kind.
    """

    class Config(Verifier.Config):
        """Settings of `recorded_choice`."""

        right: tuple[str, ...] = ("chosen",)
        """Names under which the row keeps its right answers."""
        wrong: tuple[str, ...] = ("rejected",)
        """Names under which the row keeps its wrong answers."""

    config: Config

    def check_prompt(self, prompt: Prompt) -> None:
        columns = (*self.config.right, *self.config.wrong)
        if not answers_of(prompt, columns):
            raise VerificationError(str(refused(prompt, columns, "there are none")))

    def verify(self, prompt: Prompt, trajectory: Trajectory) -> Verdict:
        """Return 1.0, 0.0, or an abstention on what is not recorded."""
        said = trajectory.completion
        if not said.strip():
            return self.scored(trajectory, 0.0, "empty answer")
        for columns, score in ((self.config.right, 1.0), (self.config.wrong, 0.0)):
            if any(answer[-1].content == said for answer in answers_of(prompt, columns)):
                return self.scored(trajectory, score, f"recorded in {', '.join(columns)}")
        return self.abstain(trajectory, "the row does not record this answer")
