"""The judge worker: every judge of the run over one shard, drafted on disk before the worker answers."""

from __future__ import annotations

import json
import logging
import math
import time
from collections import Counter
from collections.abc import Mapping, Sequence, Set
from dataclasses import replace
from itertools import repeat
from pathlib import Path
from types import MappingProxyType
from typing import cast

from policies.base.component import create
from policies.base.errors import (
    ArtifactError,
    ConfigurationError,
    JudgeError,
    PawlError,
    boundary,
    explain,
)
from policies.base.records import (
    Comparison,
    Json,
    PolicyVersion,
    Prompt,
    Trajectory,
    TrajectoryStatus,
    Verdict,
    VerdictStatus,
)
from policies.base.seeds import derive_seed
from policies.storage.artifacts import Written, read_records, write_draft
from workers.cluster.compute_threads import set_threads
from workers.cluster.item_filter import WHOLE, ItemFilter
from workers.judge.judge import BackendContext, Judge, JudgeBackend, JudgeJob, Judgement
from workers.judge.parse import cleaned
from workers.judge.reply_cache import CachedBackend, ReplyCache, cache_scope
from workers.scoring.graded_parts import parts_to_grade, verdict_on

logger = logging.getLogger(__name__)

MAX_SUMMARY_BYTES = 1_000
_PROBE_WAITS = (1.0, 3.0, 10.0)
"""Seconds before each repeat of a trial question to a server that is busy."""
NO_POLICIES: Mapping[str, PolicyVersion] = MappingProxyType({})
_UNCACHED = ("name", "weight", "backend")
"""Settings that do not change what is asked; what answers is known by its identity."""


class JudgeWorker:
    """Judges with their backends and one cache, for as long as the run."""

    def __init__(
        self,
        judges: Sequence[Judge.Config],
        context: BackendContext,
        cache_dir: str | None = None,
        policies: Mapping[str, PolicyVersion] = NO_POLICIES,
        *,
        seed: int = 0,
        threads: int | None = None,
        shared_by: int = 1,
    ) -> None:
        """Start what answers; returns when it can judge.

        Judges with equal backend settings share one backend, so a model is loaded once. `seed` is this worker's alone;
        `threads` and `shared_by` say how many CPU threads a model of ours computes with (`set_threads`).

        Args:
            judges: settings of all judges.
            context: what backends may need of the run.
            cache_dir: where replies are remembered; None keeps them in memory.
            policies: by judge, the version of the policy that it begins with, where it runs on one.

        Raises:
            ConfigurationError: two judges have one name, or a backend's settings do not hold here.
            JudgeError: a backend could not start.
        """
        names = [config.source for config in judges]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            fix = "give one of them another name"
            raise ConfigurationError(
                explain("two judges have one name", value=twice, where="judges", fix=fix)
            )
        set_threads(threads, shared_by=shared_by)
        context = replace(context, engine_seed=seed)
        cache = ReplyCache(Path(cache_dir) if cache_dir is not None else None)
        backends: dict[str, JudgeBackend] = {}
        self._judges: list[_JudgeInPlace] = []
        for config in judges:
            key = config.backend.model_dump_json()
            if key not in backends:
                backends[key] = _started(config, context, policies.get(config.source))
            place = _JudgeInPlace(config, backends[key], cache)
            place.policy = policies.get(config.source)
            self._judges.append(place)

    def judge(
        self,
        trajectories_path: str,
        prompts_path: str,
        verdicts_path: str,
        comparisons_path: str,
        seed: int,
        item_filter: ItemFilter = WHOLE,
        policies: Mapping[str, PolicyVersion] = NO_POLICIES,
    ) -> Written:
        """Judge one shard, write drafts of its verdicts and comparisons, answer with a summary under 1 KB by judge.

        Attempts that ended in an error get abstentions and are not compared; those that `item_filter` skips get errors.
        Judges in `policies` load that version of the policy first, and it stands in their verdicts.
        """
        for judge in self._judges:
            if (policy := policies.get(judge.config.source)) is not None:
                judge.serve(policy)
        trajectories = read_records(Path(trajectories_path), Trajectory)
        left = [t for t in trajectories if item_filter.takes(t.id)]
        jobs = _jobs(left, read_records(Path(prompts_path), Prompt), seed)
        verdicts: list[Verdict] = []
        comparisons: list[Comparison] = []
        summary: dict[str, Json] = {}
        for judge in self._judges:
            started = time.perf_counter()
            hits, usage = judge.backend.hits, judge.backend.usage.copy()
            judgement = judge.run(jobs, trajectories, set(item_filter.skip))
            verdicts += judgement.verdicts
            comparisons += judgement.comparisons
            summary[judge.config.source] = judge.summary(
                judgement,
                seconds=time.perf_counter() - started,
                hits=judge.backend.hits - hits,
                usage=judge.backend.usage - usage,
            )
        summary = _fitted(summary)
        drafts = (
            write_draft(Path(verdicts_path), Verdict, verdicts),
            write_draft(Path(comparisons_path), Comparison, comparisons),
        )
        return Written(files=drafts, summary=summary)

    def check(self) -> None:
        """Ask every backend a trial question, before anything is sampled; one that may be busy is asked again.

        Raises:
            JudgeError: one cannot answer; in four parts, with the judge's name.
        """
        for judge in self._judges:
            found = judge.backend.probe()
            for wait in _PROBE_WAITS:
                if found is None or not found.may_pass:
                    break
                logger.info("judge %s: %s; trying again", judge.config.source, found.message)
                time.sleep(wait)
                found = judge.backend.probe()
            if found is not None:
                raise JudgeError(f"judge {judge.config.source!r}: {found.message}")

    def identities(self) -> dict[str, Json]:
        """For the run's record: what answers each judge, and which prompt it follows."""
        return {
            judge.config.source: {"backend": judge.identity, "prompt": judge.judge.version()}
            for judge in self._judges
        }


def _started(
    config: Judge.Config, context: BackendContext, policy: PolicyVersion | None
) -> JudgeBackend:
    with boundary(
        JudgeError, f"backend {config.backend.type!r} of judge {config.source!r} could not start"
    ):
        backend = cast(JudgeBackend, create(config.backend, context=context))
        if policy is not None:
            backend.serve(policy)
        backend.start()
        return backend


class _JudgeInPlace:
    """One judge with its cached backend."""

    def __init__(self, config: Judge.Config, backend: JudgeBackend, cache: ReplyCache) -> None:
        self.config = config
        self.policy: PolicyVersion | None = None
        """The version of the run's policy that judges, where it is one."""
        with boundary(JudgeError, f"judge {config.source!r} could not start"):
            self.backend = CachedBackend(backend, cache=cache, scope="")
            self.judge: Judge = create(config, backend=self.backend)
            self._identify()

    def serve(self, policy: PolicyVersion) -> None:
        """Judge with this version of the policy from now on."""
        self.backend.serve(policy)
        self.policy = policy
        self._identify()

    def _identify(self) -> None:
        """Take note of what answers: replies of another version are not this one's."""
        self.identity = self.backend.identity()
        settings = self.config.model_dump(mode="json", exclude=set(_UNCACHED))
        version = self.judge.version()
        self.backend.scope = cache_scope(settings, prompt_version=version, identity=self.identity)

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


def _jobs(
    trajectories: Sequence[Trajectory], prompts: Sequence[Prompt], seed: int
) -> list[JudgeJob]:
    """One job per prompt, in the order of the shard, with the attempts that can be judged."""
    known = {prompt.id: prompt for prompt in prompts}
    groups: dict[str, list[Trajectory]] = {}
    for trajectory in trajectories:
        if trajectory.prompt_id not in known:
            raise ArtifactError(
                f"trajectory {trajectory.id} belongs to prompt {trajectory.prompt_id!r}, which is not in "
                "the shard's prompts. Fix: delete the round's shards and resume; they are then made again"
            )
        group = groups.setdefault(trajectory.prompt_id, [])
        if trajectory.status is not TrajectoryStatus.ERROR:
            group.append(trajectory)
    return [
        JudgeJob(prompt=known[name], trajectories=tuple(group), seed=derive_seed(seed, name))
        for name, group in groups.items()
        if group
    ]


def _fitted(summary: dict[str, Json]) -> dict[str, Json]:
    """`summary` with its texts cut until it is small enough for the driver; counts are never cut."""
    cut = summary
    for errors, length in ((3, 120), (2, 60), (1, 40), (0, 32), (0, 0)):
        cut = {}
        for name, values in summary.items():
            assert isinstance(values, dict)
            kept = {key: _cut(value, errors, length) for key, value in values.items()}
            cut[name] = {key: value for key, value in kept.items() if value not in ("", [])}
        if len(json.dumps(cut)) < MAX_SUMMARY_BYTES:
            break
    return cut


def _cut(value: Json, errors: int, length: int) -> Json:
    if isinstance(value, str):
        return value[:length]
    if isinstance(value, list):  # [text, count] pairs, the most common first
        return [
            [_cut(part, 0, length) for part in pair]
            for pair in value[:errors]
            if isinstance(pair, list)
        ]
    return value
