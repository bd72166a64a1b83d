"""The answers of a role to the prompts of a shard, which become attempts beside the policy's own."""

from __future__ import annotations

from typing import Any

from orchestrator.config.mixture import MixtureSettings
from orchestrator.config.roles import group_of
from orchestrator.flow.fingerprint import input_digests
from orchestrator.flow.shard_task import ShardWork
from orchestrator.rounds.context import RoundScope
from orchestrator.runs.folder import ShardPaths
from policies.base.records import Prompt
from policies.storage.artifacts import read_records
from workers.cluster.item_filter import ItemFilter
from workers.rollout.worker import RoleSamples


def answer_work(scope: RoundScope, share: MixtureSettings) -> ShardWork:
    """Ask a role; the model that answers is what the run began with, so that its settings alone are inputs."""
    run, name = scope.run, _named(share)

    def arguments(s: ShardPaths, attempt: ShardPaths, item_filter: ItemFilter) -> tuple[Any, ...]:
        return (str(s.prompts), str(attempt.of("answers")), share.samples, item_filter)

    return ShardWork(
        name="answer",
        group=run.groups[group_of(name)],
        method="answer",
        arguments=arguments,
        writes=("answers",),
        input_digests=input_digests(
            [name, run.config.roles[name].asking(), share, run.config.seed, scope.index],
            plug_ins=run.plug_ins,
        ),
        items=lambda shard: [p.id for p in read_records(shard.prompts, Prompt)],
    )


def role_samples(shard: ShardPaths, share: MixtureSettings | None) -> RoleSamples | None:
    """Return where a shard's answers of a role lie; None without a role."""
    if share is None:
        return None
    path = str(shard.of("answers"))
    return RoleSamples(answers_path=path, role=_named(share), samples=share.samples)


def _named(share: MixtureSettings) -> str:
    assert share.role is not None, "an earlier policy samples this share"
    return share.role
