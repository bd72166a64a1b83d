"""Rate each attempt, or each step of it, by itself on a scale, by criteria in words."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import ClassVar, Self, cast

from pydantic import Field, model_validator

from policies.base.bounds import MAX_COUNT, MAX_SCORE
from policies.base.errors import ConfigurationError, explain
from policies.base.records import Trajectory, Verdict, VerdictStatus
from workers.judge.judge import AskingJudge, JudgeBackend, JudgeJob, Judgement
from workers.judge.parse import read_score
from workers.judge.prompt import Answer, PromptedJudge, PromptSlots, viewed_text


class Rubric(PromptedJudge):
    """The score is the rating mapped to [0, 1]; with several votes, the mean of those that can be read.

    The verdict's confidence is the share of the votes that could be read.
    """

    class Config(PromptedJudge.Config):
        """Settings of the rating."""

        slots: ClassVar[PromptSlots] = PromptSlots(
            required=frozenset({"prompt", "completion"}),
            optional=frozenset({"answer", "criteria", "low", "high"}),
            last_line="Score:",
        )
        shipped_prompt: ClassVar[Path] = Path(__file__).with_name("rubric.v1.txt")

        low: float = Field(default=1.0, ge=-MAX_SCORE, le=MAX_SCORE)
        """Worst rating; becomes score 0."""
        high: float = Field(default=10.0, ge=-MAX_SCORE, le=MAX_SCORE)
        """Best rating; becomes score 1."""
        samples: int = Field(default=1, ge=1, le=MAX_COUNT)
        """Votes on each attempt, averaged. More than one needs a temperature above 0."""

        @model_validator(mode="after")
        def _sensible(self) -> Self:
            where = f"judge {self.source!r}"
            if self.low >= self.high:
                what = "the scale's low must be below its high"
                value = (self.low, self.high)
                fix = "use low: 1, high: 10"
                raise ConfigurationError(
                    explain(what, value=value, where=f"low, high of {where}", fix=fix)
                )
            if self.samples > 1 and self.temperature == 0:
                what = "several votes at temperature 0 are the same vote"
                fix = "set temperature to 0.7, or samples to 1"
                where = f"samples of {where}"
                raise ConfigurationError(explain(what, value=self.samples, where=where, fix=fix))
            return self

    def __init__(self, config: AskingJudge.Config, *, backend: JudgeBackend) -> None:
        super().__init__(config, backend=backend)
        self.rubric = cast(Rubric.Config, config)

    def verdict_lines(self) -> tuple[str, ...]:
        low, high = math.ceil(self.rubric.low), math.floor(self.rubric.high)
        return tuple(f"Score: {rating}" for rating in range(low, high + 1))

    def judge(self, jobs: Sequence[JudgeJob]) -> list[Judgement]:
        scale = {"low": f"{self.rubric.low:g}", "high": f"{self.rubric.high:g}"}
        view, level = self.settings.view, self.settings.level
        texts = [[viewed_text(t, view, level) for t in job.trajectories] for job in jobs]
        questions = [
            self.question(job.prompt, {"completion": text}, vote=vote, **scale)
            for job, group in zip(jobs, texts, strict=True)
            for text in group
            if text.strip()
            for vote in range(self.rubric.samples)
        ]
        read = partial(read_score, low=self.rubric.low, high=self.rubric.high)
        answers = iter(self.answers(questions, read))
        judgements: list[Judgement] = []
        for job, group in zip(jobs, texts, strict=True):
            judgement = Judgement()
            for trajectory, text in zip(job.trajectories, group, strict=True):
                if not text.strip():
                    judgement.counts["empty"] += 1
                    judgement.verdicts.append(self._empty(trajectory))
                    continue
                votes = [next(answers) for _ in range(self.rubric.samples)]
                judgement.counts["questions"] += len(votes)
                judgement.counts["errors"] += sum(vote.value is None for vote in votes)
                judgement.verdicts.append(self._verdict(trajectory, votes))
            judgements.append(judgement)
        return judgements

    def _empty(self, trajectory: Trajectory) -> Verdict:
        return Verdict(
            source=self.config.source,
            trajectory_id=trajectory.id,
            status=VerdictStatus.SCORED,
            score=0.0,
            rationale="not asked: empty completion",
        )

    def _verdict(self, trajectory: Trajectory, votes: Sequence[Answer]) -> Verdict:
        ratings = [vote.value for vote in votes if vote.value is not None]
        score = None
        if ratings:
            mean = sum(ratings) / len(ratings)
            span = self.rubric.high - self.rubric.low
            score = min(1.0, max(0.0, (mean - self.rubric.low) / span))
        return Verdict(
            source=self.config.source,
            trajectory_id=trajectory.id,
            status=VerdictStatus.ERROR if score is None else VerdictStatus.SCORED,
            score=score,
            error=votes[0].error if score is None else None,
            confidence=1.0 if score is None else len(ratings) / len(votes),
            rationale="\n---\n".join(vote.text for vote in votes),
            seconds=sum(vote.seconds for vote in votes),
        )
