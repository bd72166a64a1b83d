"""Puts a run together, top to bottom, and takes it apart again: the one place where everything is wired."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from orchestrator.config import RunConfig
from orchestrator.drawing import check_same_prompts
from orchestrator.events import EventKind, EventLog
from orchestrator.journal import Journal
from orchestrator.model_files import resolve_model
from orchestrator.phases import Drawn, Phase
from orchestrator.prompts.overlap import check_overlap
from orchestrator.run import Run
from orchestrator.run_folder import RunFolder
from orchestrator.stopping import StopRequest
from orchestrator.tracker import Tracker
from orchestrator.worker_groups import start_groups
from policies.component import create
from policies.errors import ConfigurationError, explain
from policies.records import Prompt
from policies.store import PolicyStore
from workers.cluster import Cluster
from workers.inline import InlineCluster


@contextmanager
def assemble(
    config: RunConfig, folder: RunFolder, *, events: EventLog, tracker: Tracker, stop: StopRequest
) -> Iterator[Run]:
    """Open everything a run needs, in order of cost; close it whatever happens."""
    journal = Journal(folder.journal)
    train, held_out = load_prompts(config)
    recorded = journal.find(0, Phase.DRAW, Drawn)
    if recorded is not None:
        check_same_prompts(recorded, train, held_out)
    store = PolicyStore(folder.policies)
    store.discard_unpublished()
    initial = store.adopt_initial(resolve_model(config.policy))
    served = [result.after for result in journal.results()]
    policy = store.get(served[-1]) if served else initial
    cluster = _cluster(config)
    try:
        started = time.monotonic()
        events.emit(EventKind.WORKERS_STARTING)
        groups = start_groups(cluster, config, folder, store, policy)
        events.emit(EventKind.WORKERS_READY, seconds=round(time.monotonic() - started, 2))
        yield Run(
            config=config,
            folder=folder,
            journal=journal,
            events=events,
            store=store,
            cluster=cluster,
            groups=groups,
            tracker=tracker,
            stop=stop,
            acceptance=create(config.acceptance),
            train_prompts=train,
            held_out_prompts=held_out,
        )
    finally:
        cluster.close()


def load_prompts(config: RunConfig) -> tuple[list[Prompt], list[Prompt]]:
    """Both prompt sets, checked.

    Raises:
        InputError: a file is wrong, or the sets overlap.
        ConfigurationError: a set is too small for the config.
    """
    train: list[Prompt] = create(config.prompts.train).load()
    held_out: list[Prompt] = create(config.prompts.held_out).load()
    if not config.prompts.allow_overlap:
        check_overlap(train, held_out)
    if config.prompts.per_round > len(train):
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


def _cluster(config: RunConfig) -> Cluster:
    if config.cluster.backend == "inline":
        return InlineCluster()
    from workers.pool import RayCluster

    return RayCluster(address=config.cluster.address, num_cpus=config.cluster.num_cpus)
