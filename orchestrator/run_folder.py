"""Where everything of a run lies. The run folder is the truth; Ray, MLflow and memory are caches.

<run>/run.json               what the run is: name, versions, config digest; written once
<run>/config.json            the resolved config
<run>/config.source.yaml     the config as it was given
<run>/driver.json            the process that drives it now (or drove it last)
<run>/journal.jsonl          finished phases; resume reads this and nothing else
<run>/events.jsonl           what happened when, for people and `pawl status`; never read for decisions
<run>/policies/0003/         published weights with their manifest
<run>/rounds/0003/           prompts.parquet, trajectories/, verdicts/, ..., examples/, train/, evaluate/
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from policies.errors import ResumeError

ShardKind = Literal[
    "trajectories", "verdicts", "judge_verdicts", "comparisons", "feedback", "examples"
]


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
        return self.train / "optimizer.pt"

    @property
    def outcome(self) -> Path:
        """What the update did (`UpdateOutcome` as JSON); marks the update finished."""
        return self.train / "outcome.json"

    def shard(self, index: int) -> ShardPaths:
        return ShardPaths(self.path, index)

    def shards(self, kind: ShardKind) -> list[Path]:
        return sorted((self.path / kind).glob("shard-*.parquet"))


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
    def journal(self) -> Path:
        return self.path / "journal.jsonl"

    @property
    def events(self) -> Path:
        return self.path / "events.jsonl"

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
        return sorted(int(p.name) for p in (self.path / "rounds").glob("[0-9]*"))


def open_run(path: Path) -> RunFolder:
    """The run at `path`.

    Raises:
        ResumeError: it is not a run folder.
    """
    folder = RunFolder(path.resolve())
    if not folder.identity.is_file():
        raise ResumeError(
            f"{path} is not a run folder (it has no run.json). Fix: give the folder "
            "that `pawl run` printed, e.g. runs/quickstart-1"
        )
    return folder
