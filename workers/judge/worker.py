"""The judge worker: every judge of the run over one shard, drafted on disk before the worker answers."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType

from policies.base.errors import ArtifactError, ConfigurationError, JudgeError, explain
from policies.base.records import (
    Comparison,
    Json,
    PolicyVersion,
    Prompt,
    Trajectory,
    TrajectoryStatus,
    Verdict,
)
from policies.base.seeds import derive_seed
from policies.storage.artifacts import Written, read_records, write_draft
from workers.cluster.compute_threads import set_threads
from workers.cluster.item_filter import WHOLE, ItemFilter
from workers.judge.judge import AskingJudge, BackendContext, Judge, JudgeBackend, JudgeJob
from workers.judge.judge_in_place import (
    AskingInPlace,
    JudgeInPlace,
    ScoringInPlace,
    started_backend,
)
from workers.judge.reply_cache import ReplyCache

logger = logging.getLogger(__name__)

MAX_SUMMARY_BYTES = 1_000
_PROBE_WAITS = (1.0, 3.0, 10.0)
"""Seconds before each repeat of a trial question to a server that is busy."""
NO_POLICIES: Mapping[str, PolicyVersion] = MappingProxyType({})


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
        self._judges: list[JudgeInPlace] = []
        for config in judges:
            policy = policies.get(config.source)
            if not isinstance(config, AskingJudge.Config):
                self._judges.append(ScoringInPlace(config, context, policy))
                continue
            key = config.backend.model_dump_json()
            if key not in backends:
                backends[key] = started_backend(config, context, policy)
            self._judges.append(AskingInPlace(config, backends[key], cache, policy))

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
            hits, usage = judge.hits, judge.usage.copy()
            judgement = judge.run(jobs, trajectories, set(item_filter.skip))
            verdicts += judgement.verdicts
            comparisons += judgement.comparisons
            summary[judge.config.source] = judge.summary(
                judgement,
                seconds=time.perf_counter() - started,
                hits=judge.hits - hits,
                usage=judge.usage - usage,
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
            found = judge.probe()
            for wait in _PROBE_WAITS:
                if found is None or not found.may_pass:
                    break
                logger.info("judge %s: %s; trying again", judge.config.source, found.message)
                time.sleep(wait)
                found = judge.probe()
            if found is not None:
                raise JudgeError(f"judge {judge.config.source!r}: {found.message}")

    def identities(self) -> dict[str, Json]:
        """For the run's record: what answers each judge, and which prompt it follows."""
        return {
            judge.config.source: {"backend": judge.identity, "prompt": judge.judge.version()}
            for judge in self._judges
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
