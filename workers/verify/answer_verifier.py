"""Base of the verifiers that grade answers: which words of an attempt they read, and what a missing answer scores."""

from __future__ import annotations

from typing import Literal

from policies.base.attempt_answer import AttemptAnswer, answer_of, is_cut, written_by
from policies.base.records import Trajectory, Verdict
from workers.verify.verifier import Verifier


class AnswerVerifier(Verifier):
    """Reads attempts by the rule of `base/attempt_answer.py`; at the level `step`, each step as it was written."""

    class Config(Verifier.Config):
        """Settings of every verifier that grades answers."""

        reads: Literal["answer", "everything"] = "answer"
        """What of an attempt is graded. `answer`: the text behind its thoughts; where `<answer>...</answer>` stands
        there, what that holds. `everything`: its last turn as it was written, thoughts included."""
        unfinished: Literal["wrong", "read"] = "wrong"
        """What an attempt scores that a limit of tokens or turns cut short. `wrong`: 0, unless it holds a closed
        `<answer>` tag or `\\boxed{...}`, for what has not ended has not answered. `read`: what its text says so far."""

    config: Config

    def answer(self, attempt: Trajectory) -> AttemptAnswer:
        """Return what is graded of `attempt`, or why there is nothing."""
        config = self.config
        if config.level == "step":
            return AttemptAnswer(attempt.completion)
        answer = answer_of(attempt, unfinished=config.unfinished == "read")
        if config.reads == "answer":
            return answer
        refused = answer.missing and config.unfinished == "wrong" and is_cut(attempt)
        return answer if refused else AttemptAnswer(written_by(attempt))

    def unanswered(self, attempt: Trajectory, answer: AttemptAnswer) -> Verdict:
        """The verdict on an attempt without an answer: 0, never an error, for it is the policy's doing."""
        return self.scored(attempt, 0.0, f"no answer: {answer.missing}")
