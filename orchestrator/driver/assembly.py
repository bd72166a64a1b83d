"""Puts a run together, top to bottom, and takes it apart again: the one place where everything is wired."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import closing, contextmanager

from orchestrator.config.gpu_counts import with_gpu_counts
from orchestrator.config.groups import group_outlines
from orchestrator.config.plug_ins.asked import acceptance_by_stage
from orchestrator.config.run_config import RunConfig
from orchestrator.config.secrets import passed_secrets
from orchestrator.driver.prompt_sets import prompt_sets_as_begun
from orchestrator.driver.worker_groups import start_groups
from orchestrator.flow.stopping import StopRequest
from orchestrator.flow.watchdog import Watch, WatchedCluster
from orchestrator.rounds.context import Run
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
    sets = prompt_sets_as_begun(config, recorded)
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
            acceptance=acceptance_by_stage(config),
            train_prompts=sets.train,
            held_out_prompts=sets.held_out,
            test_prompts=sets.test,
            stage_prompts=sets.by_stage,
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
