"""Puts a run together, top to bottom, and takes it apart again: the one place where everything is wired."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager

from orchestrator.config.gpu_counts import with_gpu_counts
from orchestrator.config.groups import group_outlines
from orchestrator.config.plug_ins.asked import acceptance_of
from orchestrator.config.plug_ins.asked import load_prompts as prompts_from
from orchestrator.config.run_config import RunConfig
from orchestrator.config.secrets import passed_secrets
from orchestrator.driver.worker_groups import start_groups
from orchestrator.flow.stopping import StopRequest
from orchestrator.flow.watchdog import Watch, WatchedCluster
from orchestrator.prompts.overlap import check_overlap
from orchestrator.rounds.context import Run
from orchestrator.rounds.drawing import check_same_prompts
from orchestrator.rounds.transfers import models_of, run_files
from orchestrator.runs.events import EventKind, EventLog
from orchestrator.runs.folder import RunFolder
from orchestrator.runs.identity import read_identity
from orchestrator.runs.journal import Journal
from orchestrator.runs.judge_models import models_as_begun
from orchestrator.runs.lease import Fence
from orchestrator.runs.leftovers import remove_leftovers
from orchestrator.runs.phases import Drawn, Phase
from orchestrator.runs.plug_in_changes import PlugIns
from orchestrator.runs.quarantine import Quarantine
from orchestrator.storage.mirror import mirroring
from orchestrator.tracking.tracker import Tracker
from policies.base.errors import ConfigurationError, explain
from policies.base.records import Prompt
from policies.storage.policy_store import PolicyStore
from workers.cluster.gpus import usable_gpus
from workers.cluster.inline import InlineCluster
from workers.cluster.seam import Cluster
from workers.cluster.transfer.shared_folder import RunFiles


@contextmanager
def assemble(
    config: RunConfig,
    folder: RunFolder,
    *,
    fence: Fence,
    events: EventLog,
    tracker: Tracker,
    stop: StopRequest,
    plug_ins: PlugIns,
) -> Iterator[Run]:
    """Open everything a run needs, in order of cost; close it whatever happens."""
    journal = _opened(folder, fence, events)
    recorded = journal.find(0, Phase.DRAW, Drawn)
    train, held_out, test = _prompts_as_begun(config, recorded)
    store = PolicyStore(folder.policies, guard=fence)
    judge_models = models_as_begun(config, store, recorded)
    watch = Watch(folder, config.cluster.silence_timeout_seconds, events.warn)
    shared = run_files(config.cluster, folder, models_of(config, store), fence)
    inner = _cluster(config, folder, journal, epoch=fence.epoch, events=events, shared=shared)
    cluster = WatchedCluster(inner, watch)
    settings, warn = config.storage, events.warn
    with (
        closing(cluster),
        mirroring(settings, folder, epoch=fence.epoch, on_warning=warn) as mirror,
    ):
        started = time.monotonic()
        events.emit(EventKind.WORKERS_STARTING)
        groups = start_groups(
            cluster,
            config,
            folder,
            store,
            journal.results(),
            epoch=fence.epoch,
            judge_models=judge_models,
            plug_ins=plug_ins.codes,
        )
        events.emit(EventKind.WORKERS_READY, seconds=round(time.monotonic() - started, 2))
        yield Run(
            config=config,
            folder=folder,
            fence=fence,
            quarantine=Quarantine(folder, guard=fence),
            journal=journal,
            events=events,
            store=store,
            cluster=cluster,
            groups=groups,
            tracker=tracker,
            stop=stop,
            acceptance=acceptance_of(config),
            train_prompts=train,
            held_out_prompts=held_out,
            test_prompts=test,
            judge_models=judge_models,
            mirror=mirror,
            plug_ins=plug_ins,
        )


def _opened(folder: RunFolder, fence: Fence, events: EventLog) -> Journal:
    """The journal to go on with, in a folder without what an earlier driver left half done."""
    journal = Journal(folder.journal, guard=fence)
    for remark in journal.remarks:
        events.warn(remark)
    with fence.holding():
        remove_leftovers(folder, journal.next_round())
    return journal


def _prompts_as_begun(
    config: RunConfig, recorded: Drawn | None
) -> tuple[list[Prompt], list[Prompt], list[Prompt]]:
    """Training, held-out and test prompts; those that round 0 recorded, where the run has begun."""
    train, held_out = load_prompts(config)
    test = load_test_prompts(config, train, held_out)
    if recorded is not None:
        check_same_prompts(recorded, train, held_out, test)
    return train, held_out, test


def load_prompts(config: RunConfig) -> tuple[list[Prompt], list[Prompt]]:
    """Both prompt sets, checked.

    Raises:
        InputError: a file is wrong, or the sets overlap.
        ConfigurationError: a set is too small for the config.
    """
    train, _ = prompts_from(config, config.prompts.train)
    held_out, _ = prompts_from(config, config.prompts.held_out)
    if not config.prompts.allow_overlap:
        check_overlap(train, held_out)
    if not train:
        raise ConfigurationError(
            explain(
                "the training set is empty: there is nothing to draw",
                value=0,
                where="prompts.train",
                fix="give at least one prompt",
            )
        )
    if config.prompts.drawn(len(train)) > len(train):
        raise ConfigurationError(
            explain(
                f"a round draws more prompts than there are: prompts.train has {len(train)}",
                value=config.prompts.per_round,
                where="prompts.per_round",
                fix=f"lower it to at most {len(train)}, or give more prompts",
            )
        )
    if not held_out:
        raise ConfigurationError(
            explain(
                "the held-out set is empty: nothing could be measured",
                value=0,
                where="prompts.held_out",
                fix="give at least one prompt",
            )
        )
    return train, held_out


def load_test_prompts(
    config: RunConfig, train: Sequence[Prompt], held_out: Sequence[Prompt]
) -> list[Prompt]:
    """The prompts of `prompts.test`, checked against both other sets; empty without the setting.

    Raises:
        InputError: a file is wrong, or the sets overlap.
        ConfigurationError: the set is empty.
    """
    if config.prompts.test is None:
        return []
    test, _ = prompts_from(config, config.prompts.test)
    if not test:
        raise ConfigurationError(
            explain(
                "the test set is empty: nothing could be measured",
                value=0,
                where="prompts.test",
                fix="give at least one prompt, or leave prompts.test out",
            )
        )
    if not config.prompts.allow_overlap:
        check_overlap(train, test, name="prompts.test")
        check_overlap(held_out, test, name="prompts.test", other="prompts.held_out")
    return test


def _cluster(
    config: RunConfig,
    folder: RunFolder,
    journal: Journal,
    *,
    epoch: int,
    events: EventLog,
    shared: RunFiles | None,
) -> Cluster:
    if config.cluster.backend == "inline":
        return InlineCluster(gpus=_inline_gpus(config))
    from workers.cluster.ray.cluster import RayCluster

    asked = config.cluster
    return RayCluster(
        address=asked.address,
        num_cpus=asked.num_cpus,
        run=read_identity(folder).run_id,
        epoch=epoch,
        allow_insecure=asked.allow_insecure,
        lost_after_seconds=asked.lost_after_seconds,
        was_running=bool(journal.entries),
        keep=passed_secrets(config),
        files=shared,
        on_warning=events.warn,
    )


def _inline_gpus(config: RunConfig) -> int:
    """GPUs that the driver may see when it does all the work: one, or none where no group asks for one."""
    asked = with_gpu_counts(config, min(1, len(usable_gpus())))
    return int(any(group.resources.gpus for group in group_outlines(asked)))
