"""The worker groups of a run: which class runs where, with which settings and resources."""

from __future__ import annotations

from typing import Any

from orchestrator.config.run_config import RunConfig
from orchestrator.config.sections import ResourceSettings
from orchestrator.file_sharing import judge_files, policy_files
from orchestrator.model_files import model_as_version
from orchestrator.run import Groups
from orchestrator.run_folder import RunFolder, template_date
from policies.component import Component
from policies.records import PolicyVersion
from policies.store import PolicyStore
from workers.cluster import NO_FILES, Cluster, Files, Group, Resources
from workers.rollout.chat_settings import ChatSettings
from workers.rollout.worker import RolloutWorker
from workers.training.worker import TrainWorker
from workers.verify.judge import BackendContext
from workers.verify.judge_worker import JudgeWorker
from workers.verify.worker import VerifyWorker


class _Starter:
    """Starts groups and remembers them, so that all can be waited for together."""

    def __init__(self, cluster: Cluster, timeout_seconds: float) -> None:
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
        group = self.cluster.start_group(
            name,
            factory,
            kwargs,
            size=size,
            resources=Resources(
                num_cpus=asked.num_cpus,
                num_gpus=asked.num_gpus,
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
    policy: PolicyVersion,
) -> Groups:
    """Start every worker group at once, the samplers with `policy`, and wait until all are ready."""
    starter = _Starter(cluster, config.cluster.start_timeout_seconds)
    chat = config.rollout.chat(template_date(folder))
    rollout = _start_rollout(starter, config, policy, chat)
    size, asked = config.verify.workers, config.verify.resources
    verify = starter.start("verify", VerifyWorker, _verify_kwargs(config), size=size, asked=asked)
    grade = verify
    if config.evaluation.verifiers is not None:
        own = {"verifiers": config.evaluation_verifiers, "feedback": config.feedback}
        grade = starter.start("grade", VerifyWorker, own, size=size, asked=asked)
    judge = _start_judge(starter, config, folder, store, chat) if config.judges else None
    train = _start_train(starter, config)
    cluster.wait_ready(starter.started, config.cluster.start_timeout_seconds)
    return Groups(rollout=rollout, verify=verify, grade=grade, judge=judge, train=train)


def strategies(config: RunConfig) -> list[Component.Config]:
    """What a rollout worker may be asked to use: the run's own strategy first, then that of each stage."""
    return [config.rollout.strategy, *(stage.strategy for stage in config.resolved_stages)]


def strategy_index(config: RunConfig, round_index: int) -> int:
    """Index in `strategies` of the one that samples a round."""
    return 1 + config.stage_of(round_index).index


def _start_rollout(
    starter: _Starter, config: RunConfig, policy: PolicyVersion, chat: ChatSettings
) -> Group:
    kwargs = {
        "engine": config.rollout.engine,
        "strategies": strategies(config),
        "steps": config.rollout.steps,
        "policy": policy,
        "dtype": config.policy.dtype,
        "seed": config.seed,
        "chat": chat,
    }
    size, asked = config.rollout.workers, config.rollout.resources
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
    store: PolicyStore,
    chat: ChatSettings,
) -> Group:
    context = BackendContext(
        policy_version=store.get,
        model_version=model_as_version,
        dtype=config.policy.dtype,
        seed=config.seed,
        chat=chat,
    )
    kwargs = {"judges": config.judges, "context": context, "cache_dir": str(folder.judge_cache)}
    size, asked = config.verify.judge_workers, config.verify.judge_resources
    files = judge_files(config, store)
    return starter.start("judge", JudgeWorker, kwargs, size=size, asked=asked, files=files)


def _start_train(starter: _Starter, config: RunConfig) -> Group:
    kwargs = {
        "setups": [
            (s.training.engine, s.training.loss, s.training) for s in config.resolved_stages
        ],
        "adapter": config.policy.adapter,
    }
    size, asked = config.training.workers, config.training.resources
    return starter.start("train", TrainWorker, kwargs, size=size, asked=asked)
