"""The places of everything that belongs to a run. The run folder is the truth; Ray, MLflow and memory are caches.

<run>/run.json               what the run is: name, versions, config digest; written once
<run>/config.json            the resolved config
<run>/config.source.yaml     the config as it was given
<run>/driver.json            the process that drives it now (or drove it last), with its heartbeat
<run>/epochs/000003.json     every claim of a driver; the highest number holds the run
<run>/epochs/000003.head     how far the journal goes, by that driver; the newest decides (`journal_reading`)
<run>/epochs/000003.beat, lock   that driver's heartbeat; held by whoever commits or claims
<run>/journal.jsonl          finished phases; resume reads this, as far as the newest head goes, and nothing else
<run>/events.jsonl           what happened when, for people and `pawl status`; never read for decisions
<run>/activity.json, activity/  what each worker does now; gone when the driver ends
<run>/policies/0003/         published weights with their manifest
<run>/rounds/0003/           prompts.parquet, trajectories/, verdicts/, ..., examples/, train/, evaluate/
<run>/rounds/0003/again-0002/, test/, final/   further measurements, laid out like evaluate/
<run>/rounds/0003/attempts/  what workers wrote and the driver has not committed; gone when the round is finished
<run>/accepted/0001.json     a change of plug-ins that was accepted, and from which round on it holds
<run>/removed/               notes on what retention removed
<run>/quarantine/            damaged files and prompts that kill workers, each with its reason beside it
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from policies.base.errors import CorruptStateError, RunNotFoundError
from policies.storage.checksums import read_sealed
from policies.storage.folder_names import numbered, numbered_folders

ShardKind = Literal[
    "answers", "trajectories", "verdicts", "judge_verdicts", "comparisons", "feedback", "examples"
]
SHARD_KINDS: tuple[ShardKind, ...] = get_args(ShardKind)
"""Kinds of shards, in the order in which they are made."""


@dataclass(frozen=True)
class ShardPaths:
    """Files of one shard, by kind."""

    directory: Path
    index: int

    def of(self, kind: ShardKind) -> Path:
        return self.directory / kind / f"shard-{self.index:04d}.parquet"

    @property
    def prompts(self) -> Path:
        return self.directory / "prompts" / f"shard-{self.index:04d}.parquet"

    def attempt(self, epoch: int, number: int) -> ShardPaths:
        """Tell where the `number`-th try at a stage of this shard puts its files, in the epoch of one driver."""
        return ShardPaths(self.directory / "attempts" / f"e{epoch:06d}-{number:04d}", self.index)


@dataclass(frozen=True)
class RoundFolder:
    """Paths of one round."""

    path: Path

    @property
    def prompts(self) -> Path:
        """All prompts drawn for the round."""
        return self.path / "prompts.parquet"

    @property
    def evaluation(self) -> RoundFolder:
        """The held-out measurement of the round; the same layout inside."""
        return RoundFolder(self.path / "evaluate")

    def measurement(self, name: str) -> RoundFolder:
        """Another measurement of the round; the same layout inside. `again-0002`: version 2 once more, for a
        decision; `final`: the held-out prompts once more, after the last; `test`: the prompts of `prompts.test`.
        """
        return RoundFolder(self.path / name)

    def measurements(self) -> list[RoundFolder]:
        """The held-out measurement of the round, and what else was measured in it."""
        others = [path for _, path in numbered(self.path, prefix="again-")]
        others += [self.path / name for name in ("final", "test")]
        return [self.evaluation, *(RoundFolder(p) for p in others if p.is_dir())]

    @property
    def train(self) -> Path:
        return self.path / "train"

    @property
    def train_log(self) -> Path:
        """One JSON line per optimizer step."""
        return self.train / "steps.jsonl"

    @property
    def candidate(self) -> Path:
        """The new weights, before they are published."""
        return self.train / "candidate"

    @property
    def optimizer_state(self) -> Path:
        return self.train / "optimizer.safetensors"

    @property
    def update_files(self) -> Path:
        """Return what the update left, with sizes and sha256."""
        return self.train / "files.json"

    @property
    def checkpoints(self) -> Path:
        """Tell where an update that was cut off goes on; gone when the round is finished."""
        return self.train / "checkpoints"

    @property
    def outcome(self) -> Path:
        """Return what the update did (`UpdateOutcome` as JSON); marks the update finished."""
        return self.train / "outcome.json"

    @property
    def attempts(self) -> Path:
        """Tell where workers write; nothing in it counts."""
        return self.path / "attempts"

    def shard(self, index: int) -> ShardPaths:
        return ShardPaths(self.path, index)

    def prompt_shards(self) -> list[Path]:
        """Prompt files of the shards that were drawn."""
        return [self.shard(index).prompts for index in self.indices("prompts")]

    def shards(self, kind: ShardKind) -> list[Path]:
        return [path for _, path in _shards(self.path / kind, "")]

    def indices(self, kind: str) -> list[int]:
        """The shards of which a file of some kind, or its marker, is there."""
        folder = self.path / kind
        return sorted({index for end in ("", ".json") for index, _ in _shards(folder, end)})


@dataclass(frozen=True)
class RunFolder:
    """Paths of a run."""

    path: Path

    @property
    def identity(self) -> Path:
        return self.path / "run.json"

    @property
    def config(self) -> Path:
        return self.path / "config.json"

    @property
    def config_source(self) -> Path:
        return self.path / "config.source.yaml"

    @property
    def driver(self) -> Path:
        return self.path / "driver.json"

    @property
    def epochs(self) -> Path:
        return self.path / "epochs"

    @property
    def quarantine(self) -> Path:
        return self.path / "quarantine"

    @property
    def journal(self) -> Path:
        return self.path / "journal.jsonl"

    @property
    def events(self) -> Path:
        return self.path / "events.jsonl"

    @property
    def activity(self) -> Path:
        """Return which worker does what now; there only while a driver works."""
        return self.path / "activity.json"

    @property
    def activity_reports(self) -> Path:
        """Signs of life of calls that take long."""
        return self.path / "activity"

    @property
    def accepted(self) -> Path:
        """Changes of plug-ins that were taken with `pawl resume --accept-changes`."""
        return self.path / "accepted"

    @property
    def removed(self) -> Path:
        """Notes on what retention removed."""
        return self.path / "removed"

    @property
    def policies(self) -> Path:
        return self.path / "policies"

    @property
    def tracking(self) -> Path:
        """Folder of the tracker's spool, offset and run ids."""
        return self.path / "tracking"

    @property
    def judge_cache(self) -> Path:
        return self.path / "judge_cache"

    def round(self, index: int) -> RoundFolder:
        return RoundFolder(self.path / "rounds" / f"{index:04d}")

    def rounds(self) -> list[int]:
        return [index for index, _ in numbered_folders(self.path / "rounds")]


def _shards(folder: Path, end: str) -> list[tuple[int, Path]]:
    return numbered(folder, prefix="shard-", suffix=f".parquet{end}")


def open_run(path: Path) -> RunFolder:
    """The run at `path`.

    Raises:
        RunNotFoundError: it is not a run folder.
    """
    folder = RunFolder(path.resolve())
    if not folder.identity.is_file():
        raise RunNotFoundError(
            f"{path} is not a run folder (it has no run.json). Fix: give the folder "
            "that `pawl run` printed, e.g. runs/quickstart-1"
        )
    return folder


def template_date(folder: RunFolder) -> str:
    """The day that chat templates of a run are told, YYYY-MM-DD: recorded in `run.json`, else the day it was begun."""
    try:
        identity = read_sealed(folder.identity.read_bytes())
    except ValueError as error:
        raise CorruptStateError(
            f"{folder.identity} cannot be read: {error}. Fix: restore it from a copy of the run"
        ) from error
    return str(identity.get("template_date") or identity["created_at"][: len("2026-11-30")])
