"""The collect phase: roll out, verify, judge and prefer, shard by shard.

*Consumes* the round's prompt shards and the serving policy. *Produces* trajectories, verdicts, feedback
and examples on disk, and their digests and counts. *On failure*: finished files stay and are not made
again; a worker's error stops the round; too many bad trajectories or verdicts stop it with the counts.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from orchestrator.config.mixture import MixtureSettings
from orchestrator.config.run_config import strategies, strategy_index
from orchestrator.flow.fingerprint import input_digests
from orchestrator.flow.shard_task import ShardTask, ShardWork, key_of, shard_tasks
from orchestrator.flow.task import Summary, Task
from orchestrator.flow.waiting import Patience
from orchestrator.rounds.answering import answer_work, role_samples
from orchestrator.rounds.context import RoundScope, Run
from orchestrator.rounds.drawing import repair_prompts
from orchestrator.rounds.judge_versions import judging_policies
from orchestrator.rounds.limits import check_collection
from orchestrator.rounds.measured_numbers import measured_numbers
from orchestrator.rounds.scheduling import scheduler
from orchestrator.rounds.transfers import group_files, policy_files
from orchestrator.runs.events import EventKind
from orchestrator.runs.folder import RoundFolder, ShardKind, ShardPaths
from orchestrator.runs.phases import Collected, Drawn
from orchestrator.runs.plug_in_changes import PlugIns
from orchestrator.runs.samplers import earlier_version, sampling_version
from policies.base.errors import ArtifactError
from policies.base.records import PolicyVersion, Prompt, Sampling, Trajectory
from policies.base.seeds import derive_seed
from policies.storage.artifacts import read_marker, read_records
from workers.cluster.item_filter import ItemFilter
from workers.cluster.seam import Group
from workers.rollout.worker import EarlierSamples, ShardJob


def collect(scope: RoundScope, drawn: Drawn) -> Collected:
    """Bring every shard of the round from prompts to examples."""
    run = scope.run
    repair_prompts(scope)
    shards = [scope.folder.shard(i) for i in range(drawn.num_shards)]
    summaries = run_on_shards(scope, _work(scope), shards, phase="collect")
    counts = totals(summaries)
    check_collection(run, scope.index, counts, summaries)
    measured = measured_numbers(scope, summaries)
    if run.config.rollout.ahead:
        behind = scope.policy.number != _sampler(scope).number
        measured["rollout/off_policy"] = float(behind)
    kinds: list[ShardKind] = ["trajectories", "examples", "feedback"]
    if scope.stage.role_samples is not None:
        kinds.append("answers")
    if run.config.verifiers:
        kinds.append("verdicts")
    if run.groups.judge is not None:
        kinds += ["judge_verdicts", "comparisons"]
    return Collected(
        digests=digests(scope.folder, kinds),
        num_trajectories=int(counts.get("rollout/trajectories", 0)),
        num_examples=int(counts.get("prefer/examples", 0)),
        counts={k: v for k, v in counts.items() if not k.startswith("prefer/dropped/")},
        dropped={
            k.removeprefix("prefer/dropped/"): int(v)
            for k, v in counts.items()
            if k.startswith("prefer/dropped/")
        },
        measured=measured,
    )


def run_on_shards(
    scope: RoundScope, work: Sequence[ShardWork], shards: Sequence[ShardPaths], *, phase: str
) -> dict[str, list[Summary]]:
    """Do some work on shards, and tell how fast each kind of it was; returns summaries by kind, in shard order."""
    tokens: Counter[str] = Counter()

    def report(task: Task, summary: Summary) -> None:
        assert isinstance(task, ShardTask)
        sampled = flow.summary_of(key_of(task.shard, "rollout"))
        tokens[task.name] += sampled.get("tokens", 0)
        scope.run.events.emit(
            EventKind.SHARD_STAGE_FINISHED,
            round_index=scope.index,
            phase=phase,
            shard=task.shard.index,
            stage=task.name,
            tokens=summary.get("tokens", 0),
            trajectories=summary.get("trajectories", 0),
        )

    flow = scheduler(scope, report)
    patience = Patience(scope.run.config.cluster.shard_timeout_seconds)
    found = flow.run(shard_tasks(work, shards, patience))
    named = {"rollout": "rollout" if phase == "collect" else "evaluate"}
    if phase == "collect":
        named |= {"verify": "verify", "judge": "judge"}
    done = {
        named[name]: {"tokens": tokens[name], "seconds": round(clock.seconds, 3)}
        for name, clock in flow.clocks.items()
        if name in named and tokens[name]
    }
    if done:
        scope.run.events.emit(
            EventKind.THROUGHPUT, round_index=scope.index, phase=phase, stages=done
        )
    return {w.name: [found[key_of(shard, w.name)] for shard in shards] for w in work}


def sampling_work(scope: RoundScope) -> list[ShardWork]:
    """Return what brings a shard to trajectories: the answers of a role, if one is asked, and the samples."""
    run, config = scope.run, scope.run.config
    share = scope.stage.role_samples
    work = [] if share is None else [answer_work(scope, share)]
    work.append(
        rollout_work(
            run,
            _sampler(scope),
            samples=scope.stage.samples,
            sampling=scope.stage.sections.rollout.sampling,
            prefix=f"r{scope.index}",
            strategy=strategy_index(config, scope.index),
            earlier=_earlier(scope),
            share=share,
        )
    )
    return work


def _sampler(scope: RoundScope) -> PolicyVersion:
    """The version that samples the round."""
    number = sampling_version(scope.run.config, scope.run.served(), scope.index)
    return scope.policy if number == scope.policy.number else scope.run.store.get(number)


def _work(scope: RoundScope) -> list[ShardWork]:
    run, config = scope.run, scope.run.config
    work = sampling_work(scope)
    before_prefer: list[str] = ["rollout"]
    if config.verifiers:
        settings = [*config.verifiers, config.feedback]
        work.append(verify_work(run.groups.verify, settings, run.plug_ins))
        before_prefer.append("verify")
    if run.groups.judge is not None:
        work.append(
            _judge_work(run, run.groups.judge, derive_seed(config.seed, "judge", scope.index))
        )
        before_prefer.append("judge")
    work.append(_prefer_work(scope, tuple(before_prefer)))
    return work


def _earlier(scope: RoundScope) -> tuple[EarlierSamples, ...]:
    """Return who samples besides the serving policy: those that served some rounds ago, or the run's first."""
    run, served = scope.run, scope.run.served()
    return tuple(
        EarlierSamples(
            policy=run.store.get(
                earlier_version(run.config, served, scope.index, share.rounds_ago)
            ),
            samples=share.samples,
        )
        for share in scope.stage.earlier
    )


def rollout_work(
    run: Run,
    policy: PolicyVersion,
    *,
    samples: int,
    sampling: Sampling,
    prefix: str,
    strategy: int = 0,
    earlier: tuple[EarlierSamples, ...] = (),
    share: MixtureSettings | None = None,
) -> ShardWork:
    """Sample a shard with `policy`, and with the earlier ones of a mixture; a role's answers join their attempts."""
    files = group_files(run.config, "rollout", [policy])
    run.groups.rollout.restart_with(files, policy=policy)
    rollout = run.config.rollout.model_dump(
        mode="json", exclude={"workers", "resources", "threads", "ahead"}
    )

    def arguments(
        shard: ShardPaths, attempt: ShardPaths, item_filter: ItemFilter
    ) -> tuple[Any, ...]:
        return (
            ShardJob(
                prompts_path=str(shard.prompts),
                output_path=str(attempt.of("trajectories")),
                policy=policy,
                samples_per_prompt=samples,
                sampling=sampling,
                scope=prefix,
                seed=run.config.seed,
                strategy=strategy,
                earlier=earlier,
                role=role_samples(shard, share),
                item_filter=item_filter,
            ),
        )

    return ShardWork(
        name="rollout",
        group=run.groups.rollout,
        method="sample",
        arguments=arguments,
        writes=("trajectories",),
        reads=() if share is None else ("answers",),
        after=() if share is None else ("answer",),
        input_digests=input_digests(
            [rollout, strategies(run.config)[strategy], samples, sampling, prefix, run.config.seed],
            policy,
            *(e.policy for e in earlier),
            plug_ins=run.plug_ins,
        ),
        folders=policy_files(policy, *(e.policy for e in earlier)).reads,
        items=lambda shard: [p.id for p in read_records(shard.prompts, Prompt)],
    )


def _trajectory_ids(shard: ShardPaths) -> list[str]:
    return [t.id for t in read_records(shard.of("trajectories"), Trajectory)]


def verify_work(group: Group, settings: Sequence[BaseModel], plug_ins: PlugIns) -> ShardWork:
    """Run every verifier on a shard's trajectories; `settings` are the verifiers' and the feedback's."""
    return ShardWork(
        name="verify",
        group=group,
        method="verify",
        arguments=lambda s, attempt, item_filter: (
            str(s.of("trajectories")),
            str(s.prompts),
            str(attempt.of("verdicts")),
            item_filter,
        ),
        writes=("verdicts",),
        reads=("trajectories",),
        input_digests=input_digests(settings, plug_ins=plug_ins),
        after=("rollout",),
        items=_trajectory_ids,
    )


def _judge_work(run: Run, group: Group, seed: int) -> ShardWork:
    """Judge a shard; judges that run on the policy load the version that is due in this round."""
    policies = judging_policies(run.config, run.journal.results(), run.store)
    group.restart_with(group_files(run.config, "judge", policies.values()), policies=policies)
    return ShardWork(
        name="judge",
        group=group,
        method="judge",
        arguments=lambda s, attempt, item_filter: (
            str(s.of("trajectories")),
            str(s.prompts),
            str(attempt.of("judge_verdicts")),
            str(attempt.of("comparisons")),
            seed,
            item_filter,
            policies,
        ),
        writes=("judge_verdicts", "comparisons"),
        reads=("trajectories",),
        # The starting policy is left out: it is the same for all rounds, as are the files that were made before.
        input_digests=input_digests(
            [*run.config.judges, seed],
            *(p for p in policies.values() if p.number > 0),
            plug_ins=run.plug_ins,
        ),
        folders=policy_files(*policies.values()).reads,
        after=("rollout",),
        items=_trajectory_ids,
    )


def _prefer_work(scope: RoundScope, after: tuple[str, ...]) -> ShardWork:
    run, config = scope.run, scope.run.config
    with_verifiers, with_judges = bool(config.verifiers), run.groups.judge is not None
    reads: list[ShardKind] = ["trajectories"]
    reads += ["verdicts"] if with_verifiers else []
    reads += ["judge_verdicts", "comparisons"] if with_judges else []

    def arguments(s: ShardPaths, attempt: ShardPaths, item_filter: ItemFilter) -> tuple[Any, ...]:
        verdicts = str(s.of("verdicts")) if with_verifiers else None
        judgements = (
            (str(s.of("judge_verdicts")), str(s.of("comparisons"))) if with_judges else None
        )
        return (
            str(s.of("trajectories")),
            str(s.prompts),
            verdicts,
            judgements,
            str(attempt.of("examples")),
            config.seed,
            f"r{scope.index}",
            str(attempt.of("feedback")),
            scope.stage.index,
        )

    weights = {v.source: v.weight for v in config.verifiers}
    weights |= {j.source: j.weight for j in config.judges}
    return ShardWork(
        name="prefer",
        group=run.groups.verify,
        method="prefer",
        arguments=arguments,
        writes=("examples", "feedback"),
        reads=tuple(reads),
        input_digests=input_digests(
            [
                scope.stage.preferences,
                config.feedback,
                weights,
                config.seed,
                f"r{scope.index}",
                *config.metrics,
            ],
            plug_ins=run.plug_ins,
        ),
        after=after,
    )


def totals(summaries: Mapping[str, Sequence[Summary]]) -> dict[str, float]:
    """Sum every number of every stage's summaries, named `<stage>/<path>`; clocks are left out."""
    total: dict[str, float] = {}
    for stage, rows in summaries.items():
        for row in rows:
            # A judge's summary names its sources at the top; a verifier's under `sources`.
            for name, value in _numbers(row, "judge/sources" if stage == "judge" else stage):
                total[name] = total.get(name, 0.0) + value
    return dict(sorted(total.items()))


def _numbers(value: Mapping[str, Any], prefix: str) -> list[tuple[str, float]]:
    found: list[tuple[str, float]] = []
    for key, item in value.items():
        if isinstance(item, Mapping):
            found += _numbers(item, f"{prefix}/{key}")
        elif isinstance(item, (int, float)) and "seconds" not in key:
            found.append((f"{prefix}/{key}", float(item)))
    return found


def digests(folder: RoundFolder, kinds: Sequence[ShardKind]) -> dict[str, str]:
    """One content digest per kind of file, over all shards in order."""
    found: dict[str, str] = {}
    for kind in kinds:
        digest = hashlib.sha256()
        for path in folder.shards(kind):
            digest.update(_content_digest(path).encode())
        found[kind] = digest.hexdigest()
    return found


def _content_digest(path: Path) -> str:
    marker = read_marker(path)
    if marker is None:
        raise ArtifactError(
            f"{path} was never finished although its stage ended. Fix: `pawl resume` makes it again"
        )
    return marker.content_digest
