"""One judge with all that it judges with, in its worker: verdicts on a shard, and what they cost."""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Sequence, Set
from dataclasses import replace
from itertools import repeat
from typing import cast

from policies.base.component import create
from policies.base.errors import ConfigurationError, JudgeError, PawlError, boundary, explain
from policies.base.records import Json, PolicyVersion, Trajectory, Verdict, VerdictStatus
from workers.cluster.item_filter import ItemFilter
from workers.judge.judge import (
    AskingJudge,
    BackendContext,
    Judge,
    JudgeBackend,
    JudgeJob,
    Judgement,
    Unavailable,
)
from workers.judge.parse import cleaned
from workers.judge.reply_cache import CachedBackend, ReplyCache, cache_scope
from workers.judge.scoring_judge import ScoringJudge
from workers.scoring.graded_parts import parts_to_grade, verdict_on

logger = logging.getLogger(__name__)

_UNCACHED = ("name", "weight", "backend")
"""Settings that do not change what is asked; what answers is known by its identity."""


class JudgeInPlace:
    """One judge in its worker."""

    judge: Judge
    identity: str
    """What answers, for the run's record."""

    def __init__(self, config: Judge.Config) -> None:
        self.config = config
        self.policy: PolicyVersion | None = None
        """The version of the run's policy that judges, where it is one."""

    @property
    def hits(self) -> int:
        """Replies that were remembered, so far."""
        return 0

    @property
    def usage(self) -> Counter[str]:
        """The cost so far, by name."""
        return Counter()

    def serve(self, policy: PolicyVersion) -> None:
        """Judge with this version of the policy from now on."""
        raise NotImplementedError

    def probe(self) -> Unavailable | None:
        """Tell why it could not judge now; None when it can."""
        return None

    def run(
        self, jobs: Sequence[JudgeJob], trajectories: Sequence[Trajectory], skipped: Set[str]
    ) -> Judgement:
        """All jobs as one judgement, with verdicts on every trajectory, in the order of the shard."""
        level = self.config.level
        jobs = [
            replace(
                job,
                trajectories=tuple(p for t in job.trajectories for p in parts_to_grade(t, level)),
            )
            for job in jobs
        ]
        total = Judgement()
        try:
            with boundary(JudgeError, f"judge {self.config.source!r} failed"):
                judgements = self.judge.judge(jobs)
                self._check(jobs, judgements)
        except PawlError as error:
            judgements = [Judgement() for _ in jobs]
            logger.warning("judge %s failed on a shard: %s", self.config.source, error)
            failed = [
                verdict_on(part, self._unscored(part, cleaned(str(error))), level)
                for job in jobs
                for part in job.trajectories
            ]
            total.counts["errors"] += len(failed)
            total.verdicts += failed
        given_up = dict.fromkeys(skipped, ItemFilter.reason("the trajectory"))
        total.counts["errors"] += len(given_up)
        by_trajectory: dict[str, list[Verdict]] = {}
        for job, judgement in zip(jobs, judgements, strict=True):
            total.counts += judgement.counts
            total.comparisons += judgement.comparisons
            total.verdicts += (
                judgement.verdicts
                if level == "trajectory"
                else map(verdict_on, job.trajectories, judgement.verdicts, repeat(level))
            )
        for verdict in total.verdicts:
            by_trajectory.setdefault(verdict.trajectory_id, []).append(verdict)
        total.verdicts = [
            verdict
            for trajectory in trajectories
            for verdict in by_trajectory.get(
                trajectory.id, [self._unscored(trajectory, given_up.get(trajectory.id))]
            )
        ]
        if self.policy is not None:
            said_by = {"policy_version": self.policy.number}
            total.verdicts = [v.model_copy(update=said_by) for v in total.verdicts]
        for verdict in total.verdicts:
            total.counts[
                verdict.status.value if verdict.status is not VerdictStatus.ERROR else "failed"
            ] += 1
        return total

    def _check(self, jobs: Sequence[JudgeJob], judgements: Sequence[Judgement]) -> None:
        if len(judgements) != len(jobs):
            raise JudgeError(f"it gave {len(judgements)} judgements on {len(jobs)} groups")
        for job, judgement in zip(jobs, judgements, strict=True):
            asked = [t.id for t in job.trajectories]
            found = [v.trajectory_id for v in judgement.verdicts]
            in_order = self.config.level == "trajectory" or found == asked
            if set(found) != set(asked) or not in_order:
                raise JudgeError(
                    f"its verdicts are not on the attempts at prompt {job.prompt.id!r}"
                )

    def _unscored(self, trajectory: Trajectory, error: str | None) -> Verdict:
        """An error verdict, or an abstention on an attempt that was not judged or has nothing to judge."""
        return Verdict(
            source=self.config.source,
            trajectory_id=trajectory.id,
            status=VerdictStatus.ABSTAINED if error is None else VerdictStatus.ERROR,
            error=error,
            rationale=""
            if error is not None
            else "not judged: nothing was written, or the attempt failed",
        )

    def summary(
        self, judgement: Judgement, *, seconds: float, hits: int, usage: Counter[str]
    ) -> dict[str, Json]:
        """Sums and counts, and the most common errors."""
        questions = judgement.counts["questions"]
        scores = [v.score for v in judgement.verdicts if v.score is not None]
        found = judgement.comparisons or judgement.verdicts
        errors = Counter(cleaned(item.error, 200) for item in found if item.error is not None)
        return {
            **{name: count for name, count in sorted((judgement.counts + usage).items()) if count},
            "score_sum": round(math.fsum(scores), 6),
            "cache_hits": hits,
            "seconds": round(seconds, 3),
            "mean_seconds": round(seconds / questions, 4) if questions else 0.0,
            "prompt": self.judge.version(),
            "backend": self.identity,
            "top_errors": [[text, count] for text, count in errors.most_common(3)],
        }


class AskingInPlace(JudgeInPlace):
    """One judge that asks, with its cached backend."""

    def __init__(
        self,
        config: AskingJudge.Config,
        backend: JudgeBackend,
        cache: ReplyCache,
        policy: PolicyVersion | None,
    ) -> None:
        super().__init__(config)
        self.policy = policy
        with boundary(JudgeError, f"judge {config.source!r} could not start"):
            self.backend = CachedBackend(backend, cache=cache, scope="")
            self.judge = create(config, backend=self.backend)
            self._identify()

    @property
    def hits(self) -> int:
        return self.backend.hits

    @property
    def usage(self) -> Counter[str]:
        return self.backend.usage

    def serve(self, policy: PolicyVersion) -> None:
        self.backend.serve(policy)
        self.policy = policy
        self._identify()

    def probe(self) -> Unavailable | None:
        return self.backend.probe()

    def _identify(self) -> None:
        """Take note of what answers: replies of another version are not this one's."""
        self.identity = self.backend.identity()
        settings = self.config.model_dump(mode="json", exclude=set(_UNCACHED))
        version = self.judge.version()
        self.backend.scope = cache_scope(settings, prompt_version=version, identity=self.identity)


class ScoringInPlace(JudgeInPlace):
    """One judge that computes its scores, with what it loaded for it."""

    def __init__(
        self, config: Judge.Config, context: BackendContext, policy: PolicyVersion | None
    ) -> None:
        super().__init__(config)
        self.policy = policy
        with boundary(JudgeError, f"judge {config.source!r} could not start"):
            judge: object = create(config, context=context)
            if not isinstance(judge, ScoringJudge):
                raise ConfigurationError(
                    explain(
                        "a judge must ask a backend or compute its scores",
                        value=config.type,
                        where=f"judge {config.source!r}",
                        fix="let its class inherit AskingJudge (with a backend) or ScoringJudge",
                    )
                )
            if policy is not None:
                judge.serve(policy)
            judge.start()
            self.judge, self._scoring = judge, judge
            self.identity = judge.identity()

    @property
    def usage(self) -> Counter[str]:
        return self._scoring.usage

    def serve(self, policy: PolicyVersion) -> None:
        self._scoring.serve(policy)
        self.policy, self.identity = policy, self._scoring.identity()


def started_backend(
    config: AskingJudge.Config, context: BackendContext, policy: PolicyVersion | None
) -> JudgeBackend:
    """The backend of a judge, loaded and serving the version that is due."""
    with boundary(
        JudgeError, f"backend {config.backend.type!r} of judge {config.source!r} could not start"
    ):
        backend = cast(JudgeBackend, create(config.backend, context=context))
        if policy is not None:
            backend.serve(policy)
        backend.start()
        return backend
