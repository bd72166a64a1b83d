"""Score by agreement: what most attempts at a prompt answer is taken for right, without any ground truth."""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Sequence
from decimal import Decimal
from typing import Literal, Self

from pydantic import Field, model_validator

from policies.base.attempt_answer import explicit_answer
from policies.base.bounds import MAX_COUNT
from policies.base.errors import ConfigurationError, explain
from policies.base.records import Prompt, Trajectory, Verdict
from policies.base.requirements import Requirements
from workers.verify.answer_verifier import AnswerVerifier
from workers.verify.verifiers.numeric_match import find_number, readable

Vote = Decimal | str


class MajorityVote(AnswerVerifier):
    """Lets the attempts at a prompt vote by their answers: self-consistency as a label for prompts without answers.

    Attempts without an answer have no vote and score 0. Where fewer than `min_votes` answered, or no answer has more
    votes than each other (with `score: majority`), the answers are not scored. `vote_share` stands beside each score:
    the share of the votes for the attempt's answer.
    """

    class Config(AnswerVerifier.Config):
        """Settings of `majority_vote`."""

        compares: Literal["number", "text"] = "number"
        """Which answers are the same: those with the same last number, or the same text but for case and blanks."""
        min_votes: int = Field(default=3, ge=2, le=MAX_COUNT)
        """Fewest attempts that must have answered."""
        min_share: float = Field(default=0.0, ge=0, le=1)
        """Least share of the votes that the majority must have; with fewer answers are not scored."""
        score: Literal["majority", "share"] = "majority"
        """What an attempt scores: 1 with the majority's answer, else 0; or its answer's share of the votes."""

        @model_validator(mode="after")
        def _whole_attempts(self) -> Self:
            if self.level == "step":
                what = (
                    "a vote is on the answers of whole attempts: their steps have no counterparts"
                )
                where = f"level of verifier {self.source!r}"
                fix = "use level: trajectory"
                raise ConfigurationError(explain(what, value="step", where=where, fix=fix))
            return self

        def requires(self) -> Requirements:
            """Nothing to load; its grades are what attempts agree on."""
            return super().requires() + Requirements(agreement=True)

    config: Config

    @property
    def takes_groups(self) -> bool:
        return True

    def verify(self, prompt: Prompt, trajectory: Trajectory) -> Verdict:
        """Return what a vote of one comes to: mostly an abstention."""
        return self.verify_group(prompt, [trajectory])[0]

    def verify_group(self, prompt: Prompt, trajectories: Sequence[Trajectory]) -> list[Verdict]:
        """Return the verdicts on all attempts at `prompt`; its answer, should it have one, is not read."""
        votes = [self._vote(trajectory) for trajectory in trajectories]
        ballots = Counter(vote for vote in votes if vote is not None)
        reason = self._undecided(ballots)
        return [
            self.abstain(trajectory, reason)
            if reason and vote is not None
            else self._verdict(trajectory, vote, ballots)
            for trajectory, vote in zip(trajectories, votes, strict=True)
        ]

    def _vote(self, attempt: Trajectory) -> Vote | None:
        """Return the answer of an attempt, such that equal ones are equal; None where it has none."""
        answer = self.answer(attempt)
        if answer.missing:
            return None
        text = explicit_answer(answer.text) or answer.text
        if self.config.compares == "number":
            return find_number(readable(text))
        return " ".join(unicodedata.normalize("NFKC", text).casefold().split()) or None

    def _undecided(self, ballots: Counter[Vote]) -> str:
        """Tell why answers are not scored; empty where they are."""
        total = ballots.total()
        if total < self.config.min_votes:
            return f"{total} attempts answered, min_votes is {self.config.min_votes}"
        (_, most), *others = ballots.most_common(2)
        if self.config.score == "majority" and others and others[0][1] == most:
            return f"a tie: two answers with {most} of {total} votes"
        if most / total < self.config.min_share:
            return (
                f"the majority has {most} of {total} votes, min_share is {self.config.min_share:g}"
            )
        return ""

    def _verdict(self, attempt: Trajectory, vote: Vote | None, ballots: Counter[Vote]) -> Verdict:
        if vote is None:
            verdict = self.scored(attempt, 0.0, "no answer, no vote")
            return verdict.model_copy(update={"metrics": {"vote_share": 0.0}})
        (majority, _), *_ = ballots.most_common(1)
        share = ballots[vote] / ballots.total()
        note = f"{str(vote)[:40]!r} has {ballots[vote]} of {ballots.total()} votes"
        score = share if self.config.score == "share" else float(vote == majority)
        verdict = self.scored(attempt, score, note)
        return verdict.model_copy(update={"metrics": {"vote_share": share}})
