"""Work on shards: the same piece of work on each, done by one worker at a time, from files to files."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from orchestrator.flow.task import (
    Ask,
    Asks,
    Attempt,
    Exchange,
    Finished,
    Guard,
    RecordFile,
    Task,
)
from orchestrator.flow.waiting import Patience
from orchestrator.runs.folder import ShardKind, ShardPaths
from policies.storage.artifacts import Written, commit
from workers.cluster.item_filter import ItemFilter
from workers.cluster.seam import Group


@dataclass(frozen=True)
class ShardWork:
    """One piece of work on every shard."""

    name: str
    group: Group
    method: str
    arguments: Callable[[ShardPaths, ShardPaths, ItemFilter], tuple[Any, ...]]
    """What the method is called with: the shard's finished files, where drafts go, which items to work on."""
    writes: tuple[ShardKind, ...]
    """Kinds of files that this work makes, in the order in which the worker answers; the first has the summary."""
    reads: tuple[ShardKind, ...] = ()
    """Kinds of files that they are made from, besides the prompts."""
    input_digests: Mapping[str, str] = field(default_factory=dict)
    """Digests of what else they are made from: policies, settings, code."""
    after: tuple[str, ...] = ()
    """Work that must have been done on the same shard."""
    folders: tuple[str, ...] = ()
    """Folders that its worker reads besides files of the shard: policies."""
    items: Callable[[ShardPaths], list[str]] | None = None
    """Ids of what to try one by one when the shard kills its worker; None where that cannot be done."""


@dataclass(kw_only=True, eq=False)
class ShardTask(Task):
    """Some work on some shard."""

    work: ShardWork
    shard: ShardPaths
    patience: Patience

    @property
    def title(self) -> str:
        return f"Shard {self.shard.index}"

    def exchange(self, attempt: Attempt) -> Exchange:
        work, shard = self.work, self.shard
        drafts = shard.attempt(attempt.epoch, attempt.number)
        arguments = work.arguments(shard, drafts, attempt.item_filter)
        files = self.files(writes=[drafts.of(kind) for kind in work.writes])
        label = f"shard-{shard.index:04d}"
        (written,) = yield Asks(
            [Ask(work.method, arguments, label=label, files=files)], self.patience
        )
        return written

    def commit(
        self, attempt: Attempt, answer: Written, inputs: dict[str, str], guard: Guard
    ) -> Sequence[Finished]:
        return [
            commit(
                draft,
                artifact.path,
                inputs=inputs,
                summary=None if number else answer.summary,
                guard=guard,
            )
            for number, (artifact, draft) in enumerate(zip(self.makes, answer.files, strict=True))
        ]

    def items(self) -> list[str] | None:
        return None if self.work.items is None else self.work.items(self.shard)

    def describe_item(self, item: str) -> tuple[str, dict[str, object]]:
        """The note names the item by its place in the shard: ids are other people's texts and make no file names."""
        shard = self.shard
        number = (self.items() or [item]).index(item)
        name = f"{_place(shard.directory)}-{self.name}-shard-{shard.index:04d}-{number:04d}"
        return name, {"item": item, "stage": self.name, "shard": shard.index}


def _place(directory: Path) -> str:
    return "-".join(directory.parts[-2:])


def key_of(shard: ShardPaths, name: str) -> str:
    """The key of the work called `name` on a shard. Example: `rounds-0003/shard-0001/verify`."""
    return f"{_place(shard.directory)}/shard-{shard.index:04d}/{name}"


def shard_tasks(
    work: Sequence[ShardWork],
    shards: Sequence[ShardPaths],
    patience: Patience,
    *,
    may_wait: bool = False,
) -> list[ShardTask]:
    """Every piece of work on every shard; each shard is a chain of its own. `may_wait`: it is wanted later."""
    return [
        ShardTask(
            key=key_of(shard, each.name),
            name=each.name,
            group=each.group,
            reads=(
                RecordFile("prompts", shard.prompts),
                *(RecordFile(kind, shard.of(kind)) for kind in each.reads),
            ),
            makes=tuple(RecordFile(kind, shard.of(kind)) for kind in each.writes),
            input_digests=each.input_digests,
            after=tuple(key_of(shard, name) for name in each.after),
            chain=key_of(shard, ""),
            may_wait=may_wait,
            folders=each.folders,
            work=each,
            shard=shard,
            patience=patience,
        )
        for shard in shards
        for each in work
    ]
