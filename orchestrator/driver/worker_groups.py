"""The worker groups of a run: which class runs where, with which settings and resources."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from orchestrator.config.gpu_counts import check_gpus, with_gpu_counts
from orchestrator.config.run_config import RunConfig, strategies
from orchestrator.config.sections import ResourceSettings
from orchestrator.rounds.context import Groups
from orchestrator.rounds.judge_versions import judging_policies
from orchestrator.rounds.transfers import judge_files, policy_files
from orchestrator.runs.folder import RunFolder, template_date
from orchestrator.runs.judge_models import model_as_recorded
from policies.base.records import PolicyVersion, RoundResult
from policies.plug_ins.plugin_code import PlugInCode
from policies.storage.policy_store import PolicyStore
from workers.cluster.pinned import PinnedWorker
from workers.cluster.seam import NO_FILES, Cluster, Files, Group, Resources, WorkerSeed
from workers.judge.judge import BackendContext
from workers.judge.worker import JudgeWorker
from workers.rollout.chat.chat_settings import ChatSettings
from workers.rollout.worker import RolloutWorker
from workers.training.worker import TrainWorker
from workers.verify.worker import VerifyWorker

NO_PLUG_INS: Mapping[str, PlugInCode] = {}


class _Starter:
    """Starts groups and remembers them, so that all can be waited for together."""

    def __init__(
        self, cluster: Cluster, timeout_seconds: float, plug_ins: Mapping[str, PlugInCode], run: str
    ) -> None:
        self._plug_ins, self._run = plug_ins, run
        self.cluster = cluster
        self.timeout_seconds = timeout_seconds
        self.started: list[Group] = []

    def start(
        self,
        name: str,
        factory: type,
        kwargs: dict[str, Any],
        *,
        size: int,
        asked: ResourceSettings,
        files: Files = NO_FILES,
    ) -> Group:
        if self._plug_ins:
            pins = {"pinned_code": dict(self._plug_ins), "pinned_run": self._run}
            kwargs = {**kwargs, "pinned_factory": factory, **pins}
            factory = PinnedWorker
        group = self.cluster.start_group(
            name,
            factory,
            kwargs,
            size=size,
            resources=Resources(
                num_cpus=asked.num_cpus,
                num_gpus=asked.gpus,
                custom=asked.custom,
                labels=asked.labels,
                placement=asked.placement,
            ),
            timeout_seconds=self.timeout_seconds,
            files=files,
        )
        self.started.append(group)
        return group


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
    policy = store.get(results[-1].after if results else 0)
    starter = _Starter(cluster, config.cluster.start_timeout_seconds, plug_ins, str(folder.path))
    chat = config.rollout.chat(template_date(folder))
    rollout = _start_rollout(starter, config, policy, chat, epoch)
    size, asked = config.verify.workers, config.verify.resources
    verify = starter.start("verify", VerifyWorker, _verify_kwargs(config), size=size, asked=asked)
    grade = verify
    if config.evaluation.verifiers is not None:
        own = {"verifiers": config.evaluation_verifiers, "feedback": config.feedback}
        grade = starter.start("grade", VerifyWorker, own, size=size, asked=asked)
    judge = None
    if config.judges:
        policies = judging_policies(config, results, store)
        context = BackendContext(
            policy_version=store.get,
            model_version=partial(model_as_recorded, judge_models or {}),
            dtype=config.policy.dtype,
            seed=config.seed,
            chat=chat,
        )
        judge = _start_judge(starter, config, folder, policies, context, epoch=epoch)
    train = _start_train(starter, config)
    cluster.wait_ready(starter.started, config.cluster.start_timeout_seconds)
    if judge is not None:
        _check_judges(cluster, judge, config.cluster.start_timeout_seconds)
    return Groups(rollout=rollout, verify=verify, grade=grade, judge=judge, train=train)


def _start_rollout(
    starter: _Starter, config: RunConfig, policy: PolicyVersion, chat: ChatSettings, epoch: int
) -> Group:
    size, asked = config.rollout.workers, config.rollout.resources
    kwargs = {
        "engine": config.rollout.engine,
        "strategies": strategies(config),
        "steps": config.rollout.steps,
        "policy": policy,
        "dtype": config.policy.dtype,
        "seed": WorkerSeed((config.seed, "rollout", epoch)),
        "threads": config.rollout.threads,
        "shared_by": size,
        "chat": chat,
    }
    files = policy_files(policy)
    return starter.start("rollout", RolloutWorker, kwargs, size=size, asked=asked, files=files)


def _verify_kwargs(config: RunConfig) -> dict[str, Any]:
    weights = {v.source: v.weight for v in config.verifiers}
    weights |= {j.source: j.weight for j in config.judges}
    return {
        "verifiers": config.verifiers,
        "feedback": config.feedback,
        "preferences": [stage.preferences for stage in config.resolved_stages],
        "weights": weights,
    }


def _start_judge(
    starter: _Starter,
    config: RunConfig,
    folder: RunFolder,
    policies: Mapping[str, PolicyVersion],
    context: BackendContext,
    *,
    epoch: int,
) -> Group:
    size, asked = config.verify.judge_workers, config.verify.judge_resources
    kwargs = {
        "judges": config.judges,
        "context": context,
        "cache_dir": str(folder.judge_cache),
        "policies": policies,
        "seed": WorkerSeed((config.seed, "judge", epoch)),
        "threads": config.verify.judge_threads,
        "shared_by": size,
    }
    files = judge_files(config, policies.values())
    return starter.start("judge", JudgeWorker, kwargs, size=size, asked=asked, files=files)


def _check_judges(cluster: Cluster, judge: Group, timeout_seconds: float) -> None:
    """Let every judge worker ask its servers a trial question: one that does not answer is found before sampling."""
    calls = [judge.submit("check", worker=i, label="trial question") for i in judge.ready()]
    for call in calls:
        cluster.result(call, timeout_seconds)


def _start_train(starter: _Starter, config: RunConfig) -> Group:
    kwargs = {
        "setups": [
            (s.training.engine, s.training.loss, s.training) for s in config.resolved_stages
        ],
        "adapter": config.policy.adapter,
    }
    size, asked = config.training.workers, config.training.resources
    return starter.start("train", TrainWorker, kwargs, size=size, asked=asked)
