"""Judges that compute scores themselves, many attempts at a time: reward models and other classifiers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from policies.base.attempt_answer import answer_of
from policies.base.bounds import MAX_SCORE
from policies.base.component_walk import stated_requirements
from policies.base.errors import JudgeError, PawlError, boundary, explain
from policies.base.records import Message, PolicyVersion, Prompt, Trajectory, Verdict, VerdictStatus
from workers.judge.judge import BackendContext, Judge, JudgeJob, Judgement
from workers.judge.parse import cleaned


@dataclass(frozen=True)
class ToScore:
    """One attempt, or one step of it, to be scored."""

    prompt: Prompt
    attempt: Trajectory
    messages: tuple[Message, ...]
    """The task and what the policy answered to it, as a chat."""

    @property
    def answer(self) -> str:
        """The last message: what is scored."""
        return self.messages[-1].content


class ScoringJudge(Judge):
    """Scores attempts in batches. Constructor: `(config, *, context: BackendContext)`, which starts nothing.

    Scores lie in [0, 1], or are any finite numbers where `Config.requires()` says `raw_scores`. An attempt without an
    answer is not asked about: it gets the lowest score of its group (0 where scores lie in [0, 1]), and no opinion
    where the group has no other.
    """

    def __init__(self, config: Judge.Config, *, context: BackendContext) -> None:
        self.config = config
        self.context = context
        self.usage: Counter[str] = Counter()
        """The cost so far: `calls`, `prompt_tokens`; whatever it counts here reaches the metrics of the judge."""

    def serve(self, policy: PolicyVersion) -> None:
        """Score with this version of the run's policy from now on; asked where `requires()` names the policy.

        Raises:
            JudgeError: it cannot be loaded.
        """
        raise JudgeError(f"judge {self.config.source!r} runs on no version of the policy")

    def start(self) -> None:
        """Load what scores; called once, before the first attempt."""

    def identity(self) -> str:
        """Return what scores, for the run's record: model name and digest."""
        return self.config.type

    def score(self, batch: Sequence[ToScore]) -> Sequence[float | str]:
        """Return a score for each, in order, or why it has none. Asked about all attempts of a shard at once."""
        raise NotImplementedError

    def text(self, attempt: Trajectory) -> str:
        """Return what of an attempt is scored: its answer, empty where it has none; of a step, its turn up to there."""
        if self.config.level == "trajectory" or attempt.graded is None:
            return answer_of(attempt).text
        steps = attempt.turns[attempt.graded.turn].steps
        until = "".join(step.text for step in steps if step.end <= attempt.graded.end)
        return (until or attempt.completion) if attempt.completion.strip() else ""

    def judge(self, jobs: Sequence[JudgeJob]) -> list[Judgement]:
        texts = [[self.text(attempt) for attempt in job.trajectories] for job in jobs]
        asked = [
            ToScore(job.prompt, attempt, _chat(job.prompt, attempt, text))
            for job, of_job in zip(jobs, texts, strict=True)
            for attempt, text in zip(job.trajectories, of_job, strict=True)
            if text.strip()
        ]
        found = iter(self._scores(asked))
        judgements = []
        for job, of_job in zip(jobs, texts, strict=True):
            scores = [next(found) if text.strip() else None for text in of_job]
            judgements.append(self._judgement(job, scores))
        return judgements

    def _scores(self, asked: Sequence[ToScore]) -> list[float | str]:
        """A score or an error for each; when a call fails, its halves are tried, down to the attempts at fault."""
        if not asked:
            return []
        try:
            with boundary(JudgeError, f"judge {self.config.source!r} failed"):
                scores = [s if isinstance(s, str) else float(s) for s in self.score(asked)]
                if len(scores) != len(asked):
                    raise JudgeError(f"it gave {len(scores)} scores to {len(asked)} attempts")
        except PawlError as error:
            if len(asked) == 1:
                return [cleaned(str(error))]
            middle = len(asked) // 2
            return self._scores(asked[:middle]) + self._scores(asked[middle:])
        return [s if isinstance(s, str) else self._checked(s) for s in scores]

    def _checked(self, score: float) -> float | str:
        raw = stated_requirements(self.config).raw_scores
        if -MAX_SCORE <= score <= MAX_SCORE and (raw or 0.0 <= score <= 1.0):
            return score
        return explain(
            f"a score must be {'a finite number' if raw else 'in [0, 1]'}",
            value=score,
            where=f"judge {self.config.source!r}",
            fix="correct the model" if raw else "let Config.requires() say raw_scores=True",
        )

    def _judgement(self, job: JudgeJob, scores: Sequence[float | str | None]) -> Judgement:
        judgement = Judgement()
        known = [score for score in scores if isinstance(score, float)]
        raw = stated_requirements(self.config).raw_scores
        lowest = min(known, default=None) if raw else 0.0
        for attempt, score in zip(job.trajectories, scores, strict=True):
            judgement.counts["empty" if score is None else "questions"] += 1
            judgement.counts["errors"] += isinstance(score, str)
            judgement.verdicts.append(self._verdict(attempt, score, lowest, raw=raw))
        return judgement

    def _verdict(
        self, attempt: Trajectory, score: float | str | None, lowest: float | None, *, raw: bool
    ) -> Verdict:
        status = VerdictStatus.ERROR if isinstance(score, str) else VerdictStatus.SCORED
        value = lowest if score is None else score
        if value is None:
            status = VerdictStatus.ABSTAINED
        note = "not asked: no answer" if score is None else ""
        return Verdict(
            source=self.config.source,
            trajectory_id=attempt.id,
            status=status,
            score=value if isinstance(value, float) else None,
            error=value if isinstance(value, str) else None,
            rationale=f"{note}, scored as the lowest of its group" if note and raw else note,
            raw=raw and isinstance(value, float),
        )


def _chat(prompt: Prompt, attempt: Trajectory, text: str) -> tuple[Message, ...]:
    """The prompt, earlier turns as they were written, and `text` as the last answer."""
    last = len(attempt.turns) if attempt.graded is None else attempt.graded.turn + 1
    turns = [turn for turn in attempt.turns[:last] if turn.text.strip() or turn.role == "policy"]
    while turns and turns[-1].role != "policy":
        turns.pop()
    said = [
        Message(role="assistant" if turn.role == "policy" else "user", content=turn.text)
        for turn in turns[:-1]
    ]
    return (*prompt.messages, *attempt.opening, *said, Message(role="assistant", content=text))
