"""Compare attempts two by two, always in both orders, so that a taste for the first one cancels out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import ClassVar, NamedTuple, Self, cast

from pydantic import Field, model_validator

from policies.base.bounds import MAX_COUNT
from policies.base.errors import ConfigurationError, explain
from policies.base.records import Comparison, Prompt, Trajectory, Verdict, VerdictStatus
from policies.base.seeds import derive_rng
from workers.judge.judge import AskingJudge, JudgeBackend, JudgeJob, Judgement, Question
from workers.judge.parse import read_winner
from workers.judge.prompt import Answer, PromptedJudge, PromptSlots, viewed_text


class Pair(NamedTuple):
    """Two positions in a group, the smaller one first."""

    first: int
    second: int


@dataclass(frozen=True)
class Match:
    """Two attempts to compare; `settled` is the probability that the first wins when no call is needed."""

    pair: Pair
    texts: tuple[str, str]
    settled: float | None
    reason: str = ""


class Pairwise(PromptedJudge):
    """Each attempt's score is its mean probability of winning over its successful comparisons.

    The verdict's confidence is the share of its comparisons that were successful.
    """

    class Config(PromptedJudge.Config):
        """Settings of the comparison."""

        slots: ClassVar[PromptSlots] = PromptSlots(
            required=frozenset({"prompt", "first", "second"}),
            optional=frozenset({"answer", "criteria"}),
            last_line="Winner:",
        )
        shipped_prompt: ClassVar[Path] = Path(__file__).with_name("pairwise.v1.txt")

        comparisons_per_prompt: int | None = Field(default=None, ge=1, le=MAX_COUNT)
        """Most pairs compared in one group, spread evenly over the attempts; null compares all K(K-1)/2."""

        @model_validator(mode="after")
        def _whole_attempts(self) -> Self:
            if self.level == "step":
                what = "a pairwise judge compares whole attempts: their steps have no counterparts"
                fix = "use the judge type rubric for steps, or level: trajectory"
                where = f"level of judge {self.source!r}"
                raise ConfigurationError(explain(what, value="step", where=where, fix=fix))
            return self

    def __init__(self, config: AskingJudge.Config, *, backend: JudgeBackend) -> None:
        super().__init__(config, backend=backend)
        self.limit = cast(Pairwise.Config, config).comparisons_per_prompt

    def verdict_lines(self) -> tuple[str, ...]:
        return ("Winner: A", "Winner: B", "Winner: tie")

    def judge(self, jobs: Sequence[JudgeJob]) -> list[Judgement]:
        matches = [self._matches(job) for job in jobs]
        questions = [
            question
            for job, group in zip(jobs, matches, strict=True)
            for match in group
            if match.settled is None
            for question in self._both_orders(job.prompt, match)
        ]
        answers = iter(self.answers(questions, read_winner))
        return [
            self._judgement(job, group, answers) for job, group in zip(jobs, matches, strict=True)
        ]

    def _matches(self, job: JudgeJob) -> list[Match]:
        texts = [viewed_text(t, self.settings.view) for t in job.trajectories]
        pairs = choose_pairs(len(texts), self.limit, seed=(job.seed, self.config.source))
        return [_match(pair, texts[pair.first], texts[pair.second]) for pair in pairs]

    def _both_orders(self, prompt: Prompt, match: Match) -> list[Question]:
        one, two = match.texts
        return [
            self.question(prompt, {"first": one, "second": two}),
            self.question(prompt, {"first": two, "second": one}),
        ]

    def _judgement(
        self, job: JudgeJob, matches: Sequence[Match], answers: Iterator[Answer]
    ) -> Judgement:
        judgement = Judgement()
        for match in matches:
            first, second = (job.trajectories[i].id for i in match.pair)
            if match.settled is not None:
                comparison = self._settled(first, second, match)
                judgement.counts[match.reason.split()[0]] += 1
            else:
                comparison = self._compared(first, second, next(answers), next(answers))
                judgement.counts += _counts(comparison)
            judgement.comparisons.append(comparison)
        judgement.counts["comparisons"] = len(matches)
        judgement.verdicts = [self._verdict(t, judgement.comparisons) for t in job.trajectories]
        return judgement

    def _settled(self, first: str, second: str, match: Match) -> Comparison:
        return Comparison(
            source=self.config.source,
            first=first,
            second=second,
            probability=match.settled,
            first_shown_first=match.settled,
            first_shown_second=match.settled,
            agreed=True,
            rationale=f"not asked: {match.reason}",
        )

    def _compared(self, first: str, second: str, ahead: Answer, behind: Answer) -> Comparison:
        """`ahead`: the first attempt was shown as A; `behind`: it was shown as B."""
        shown_first = ahead.value
        shown_second = None if behind.value is None else 1.0 - behind.value
        both = shown_first is not None and shown_second is not None
        return Comparison(
            source=self.config.source,
            first=first,
            second=second,
            probability=((shown_first or 0.0) + (shown_second or 0.0)) / 2 if both else None,
            first_shown_first=shown_first,
            first_shown_second=shown_second,
            agreed=both and shown_first == shown_second,
            error=ahead.error or behind.error,
            rationale=f"[shown first]\n{ahead.text}\n[shown second]\n{behind.text}",
            seconds=ahead.seconds + behind.seconds,
        )

    def _verdict(self, trajectory: Trajectory, comparisons: Sequence[Comparison]) -> Verdict:
        mine = [c for c in comparisons if trajectory.id in (c.first, c.second)]
        wins = [
            c.probability if c.first == trajectory.id else 1.0 - c.probability
            for c in mine
            if c.probability is not None
        ]
        status, score, error, confidence = VerdictStatus.ABSTAINED, None, None, 1.0
        rationale = "not compared with any other attempt"
        if wins:
            status, score = VerdictStatus.SCORED, sum(wins) / len(wins)
            confidence = len(wins) / len(mine)
            rationale = (
                f"won {sum(wins):g} of {len(wins)} comparisons; {len(mine) - len(wins)} failed"
            )
        elif mine:
            status, error = VerdictStatus.ERROR, mine[0].error or "failed"
            rationale = (
                f"all {len(mine)} comparisons failed; the first answer:\n{mine[0].rationale}"
            )
        return Verdict(
            source=self.config.source,
            trajectory_id=trajectory.id,
            status=status,
            score=score,
            error=error,
            confidence=confidence,
            rationale=rationale,
            seconds=sum(c.seconds for c in mine) / 2,
        )


def _match(pair: Pair, first: str, second: str) -> Match:
    texts = (first, second)
    if first.strip() == second.strip():
        reason = "identical completions, a tie" if first.strip() else "empty completions, a tie"
        return Match(pair, texts, settled=0.5, reason=reason)
    if not first.strip() or not second.strip():
        return Match(
            pair, texts, settled=float(bool(first.strip())), reason="empty completion loses"
        )
    return Match(pair, texts, settled=None)


def _counts(comparison: Comparison) -> Counter[str]:
    """Tell how one asked comparison ended; `preferred_first` is the part of `disagreed` due to position."""
    counts: Counter[str] = Counter(questions=2)
    ahead, behind = comparison.first_shown_first, comparison.first_shown_second
    if ahead is None or behind is None:
        counts["errors"] = 1
        return counts
    counts["agreed" if comparison.agreed else "disagreed"] = 1
    if ahead == behind == 0.5:
        counts["ties"] = 1
    if ahead > behind:
        counts["preferred_first"] = 1
    return counts


def choose_pairs(size: int, limit: int | None, *, seed: tuple[object, ...]) -> list[Pair]:
    """Pairs of a group of `size`: all, or `limit` of them with every attempt in about as many.

    Attempts are put in a seeded circle; neighbours come first (a ring connects everyone), then those two
    apart, and so on. Within a distance, the pair whose attempts were used least comes next.
    """
    if limit is None or limit >= size * (size - 1) // 2:
        return [Pair(*pair) for pair in combinations(range(size), 2)]
    order = list(range(size))
    derive_rng(*seed, "pairs").shuffle(order)
    used = [0] * size
    chosen: list[Pair] = []
    for distance in range(1, size // 2 + 1):
        starts = list(range(size // 2 if 2 * distance == size else size))
        while starts and len(chosen) < limit:
            ends = [(order[s], order[(s + distance) % size]) for s in starts]
            best = min(
                range(len(starts)),
                key=lambda i: (max(used[e] for e in ends[i]), sum(used[e] for e in ends[i]), i),
            )
            for end in ends[best]:
                used[end] += 1
            chosen.append(Pair(*sorted(ends[best])))
            starts.pop(best)
    return sorted(chosen)
