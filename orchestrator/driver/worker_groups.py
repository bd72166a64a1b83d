"""The worker groups of a run: which class runs where, with which settings and resources."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from orchestrator.config.gpu_counts import check_gpus, with_gpu_counts
from orchestrator.config.groups import group_outlines
from orchestrator.config.roles import group_of
from orchestrator.config.run_config import RunConfig, strategies
from orchestrator.rounds.context import Groups
from orchestrator.rounds.judge_versions import judging_policies
from orchestrator.rounds.transfers import group_files
from orchestrator.runs.folder import RunFolder, template_date
from orchestrator.runs.judge_models import model_as_recorded
from policies.base.records import PolicyVersion, RoundResult
from policies.plug_ins.plugin_code import PlugInCode
from policies.storage.policy_store import PolicyStore
from workers.cluster.pinned import PinnedWorker
from workers.cluster.seam import Cluster, Group, GroupSpec, Resources, Restarts, WorkerSeed
from workers.judge.judge import BackendContext
from workers.judge.worker import JudgeWorker
from workers.roles.worker import RoleWorker
from workers.rollout.chat.chat_settings import ChatSettings
from workers.rollout.worker import RolloutWorker
from workers.training.worker import TrainWorker
from workers.verify.worker import VerifyWorker

NO_PLUG_INS: Mapping[str, PlugInCode] = {}


@dataclass(frozen=True)
class RunSoFar:
    """All that workers are made of: the config with its numbers of GPUs, and where the run stands."""

    config: RunConfig
    folder: RunFolder
    store: PolicyStore
    results: Sequence[RoundResult]
    epoch: int
    judge_models: Mapping[str, PolicyVersion]

    @property
    def chat(self) -> ChatSettings:
        return self.config.rollout.chat(template_date(self.folder))


def start_groups(
    cluster: Cluster,
    config: RunConfig,
    folder: RunFolder,
    store: PolicyStore,
    results: Sequence[RoundResult],
    *,
    epoch: int = 0,
    judge_models: Mapping[str, PolicyVersion] | None = None,
    plug_ins: Mapping[str, PlugInCode] = NO_PLUG_INS,
) -> Groups:
    """Start every worker group at once, and wait until all are ready and every judge server answers.

    Samplers begin with the version that serves after `results` (version 0 before them), judges with those due then.
    Samplers of a later driver of the run (`epoch`) draw other random numbers than those of an earlier one.
    """
    if config.cluster.backend == "ray":
        check_gpus(config, cluster.gpus())
    config = with_gpu_counts(config, cluster.gpus())
    made = RunSoFar(config, folder, store, results, epoch, judge_models or {})
    specs = [_pinned(spec, plug_ins, str(folder.path)) for spec in group_specs(made)]
    started = {spec.name: cluster.start_group(spec) for spec in specs}
    timeout_seconds = config.cluster.start_timeout_seconds
    cluster.wait_ready(list(started.values()), timeout_seconds)
    groups = Groups(started)
    for name in ("judge", *map(group_of, config.roles)):
        if name in groups:
            _check_answers(cluster, groups[name], timeout_seconds)
    return groups


def group_specs(made: RunSoFar) -> list[GroupSpec]:
    """The specification of every group: its outline, with the class of its workers and what they are given."""
    cluster = made.config.cluster
    restarts = Restarts(cluster.max_restarts, cluster.start_timeout_seconds)
    makers: dict[str, Callable[[RunSoFar, int], GroupSpec]] = {
        **_WORKERS,
        **{group_of(name): partial(_role, name) for name in made.config.roles},
    }
    specs = []
    for outline in group_outlines(made.config):
        asked = outline.resources
        resources = Resources(
            num_cpus=asked.num_cpus,
            num_gpus=asked.gpus,
            custom=asked.custom,
            labels=asked.labels,
            placement=asked.placement,
        )
        specs.append(
            dataclasses.replace(
                makers[outline.name](made, outline.workers),
                size=outline.workers,
                resources=resources,
                restarts=restarts,
            )
        )
    return specs


def _pinned(spec: GroupSpec, plug_ins: Mapping[str, PlugInCode], run: str) -> GroupSpec:
    """The group with workers that look at their plug-ins before an answer counts; the same without plug-ins."""
    if not plug_ins:
        return spec
    pins = {"pinned_factory": spec.worker, "pinned_code": dict(plug_ins), "pinned_run": run}
    return dataclasses.replace(spec, worker=PinnedWorker, arguments={**spec.arguments, **pins})


def _rollout(made: RunSoFar, size: int) -> GroupSpec:
    config, results = made.config, made.results
    policy = made.store.get(results[-1].after if results else 0)
    arguments = {
        "engine": config.rollout.engine,
        "strategies": strategies(config),
        "steps": config.rollout.steps,
        "policy": policy,
        "dtype": config.policy.dtype,
        "seed": WorkerSeed((config.seed, "rollout", made.epoch)),
        "threads": config.rollout.threads,
        "shared_by": size,
        "chat": made.chat,
    }
    files = group_files(config, "rollout", [policy])
    return GroupSpec(
        "rollout", RolloutWorker, arguments, files=files, reports=frozenset({"sample"})
    )


def _verify(made: RunSoFar, size: int) -> GroupSpec:
    config = made.config
    weights = {v.source: v.weight for v in config.verifiers}
    weights |= {j.source: j.weight for j in config.judges}
    arguments = {
        "verifiers": config.verifiers,
        "feedback": config.feedback,
        "held_out": config.evaluation_feedback,
        "preferences": [stage.preferences for stage in config.resolved_stages],
        "weights": weights,
        "metrics": config.metrics,
    }
    files = group_files(config, "verify")
    return GroupSpec("verify", VerifyWorker, arguments, files=files, reports=frozenset({"verify"}))


def _grade(made: RunSoFar, size: int) -> GroupSpec:
    config = made.config
    arguments = {
        "verifiers": config.evaluation_verifiers,
        "feedback": config.evaluation_feedback,
        "metrics": config.metrics,
    }
    files = group_files(config, "grade")
    return GroupSpec("grade", VerifyWorker, arguments, files=files, reports=frozenset({"verify"}))


def _context(made: RunSoFar) -> BackendContext:
    """Facts of the run for backends."""
    return BackendContext(
        policy_version=made.store.get,
        model_version=partial(model_as_recorded, made.judge_models),
        dtype=made.config.policy.dtype,
        seed=made.config.seed,
        chat=made.chat,
    )


def _judge(made: RunSoFar, size: int) -> GroupSpec:
    config = made.config
    policies = judging_policies(config, made.results, made.store)
    arguments = {
        "judges": config.judges,
        "context": _context(made),
        "cache_dir": str(made.folder.judge_cache),
        "policies": policies,
        "seed": WorkerSeed((config.seed, "judge", made.epoch)),
        "threads": config.verify.judge_threads,
        "shared_by": size,
    }
    files = group_files(config, "judge", policies.values())
    return GroupSpec("judge", JudgeWorker, arguments, files=files, reports=frozenset({"judge"}))


def _train(made: RunSoFar, size: int) -> GroupSpec:
    stages = made.config.resolved_stages
    arguments = {
        "setups": [(s.training.engine, s.training.loss, s.training) for s in stages],
        "adapter": made.config.policy.adapter,
    }
    files = group_files(made.config, "train")
    return GroupSpec("train", TrainWorker, arguments, files=files, reports=frozenset({"update"}))


def _role(name: str, made: RunSoFar, size: int) -> GroupSpec:
    config, group = made.config, group_of(name)
    role = config.roles[name]
    arguments = {
        "name": name,
        "asking": role.asking(),
        "context": _context(made),
        "seed": WorkerSeed((config.seed, group, made.epoch)),
        "threads": role.threads,
        "shared_by": size,
    }
    files = group_files(config, group)
    return GroupSpec(group, RoleWorker, arguments, files=files, reports=frozenset({"answer"}))


_WORKERS: Mapping[str, Callable[[RunSoFar, int], GroupSpec]] = {
    "rollout": _rollout,
    "verify": _verify,
    "grade": _grade,
    "judge": _judge,
    "train": _train,
}
"""The makers of the groups that `orchestrator.config.groups` outlines."""


def _check_answers(cluster: Cluster, group: Group, timeout_seconds: float) -> None:
    """Let every worker ask its servers a trial question: one that does not answer is found before sampling."""
    calls = [group.submit("check", worker=i, label="trial question") for i in group.ready()]
    for call in calls:
        cluster.result(call, timeout_seconds)
