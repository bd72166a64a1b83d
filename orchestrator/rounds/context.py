"""A run with everything it needs, put together once: what the phases are given."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from orchestrator.acceptance.rule import AcceptanceRule
from orchestrator.config.run_config import RunConfig
from orchestrator.config.stages import Stage
from orchestrator.flow.stopping import StopRequest
from orchestrator.runs.events import EventLog
from orchestrator.runs.folder import RoundFolder, RunFolder
from orchestrator.runs.journal import Journal
from orchestrator.runs.lease import Fence
from orchestrator.runs.plug_in_changes import PlugIns
from orchestrator.runs.quarantine import Quarantine
from orchestrator.storage.mirror import Mirror
from orchestrator.tracking.tracker import Tracker
from policies.base.records import PolicyVersion, Prompt, Record
from policies.storage.policy_store import PolicyStore
from workers.cluster.seam import Cluster, Group

R = TypeVar("R", bound=Record)


class Groups(Mapping[str, Group]):
    """The worker groups by name, with accessors for those that a round asks."""

    def __init__(self, by_name: Mapping[str, Group]) -> None:
        self._by_name = dict(by_name)

    def __getitem__(self, name: str) -> Group:
        return self._by_name[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._by_name)

    def __len__(self) -> int:
        return len(self._by_name)

    @property
    def rollout(self) -> Group:
        """Samplers."""
        return self["rollout"]

    @property
    def verify(self) -> Group:
        """Verifiers of training attempts, and makers of examples."""
        return self["verify"]

    @property
    def grade(self) -> Group:
        """Verifiers of measured attempts: `verify` unless evaluation has verifiers of its own."""
        return self.get("grade", self["verify"])

    @property
    def judge(self) -> Group | None:
        """Judges; None in a run without any."""
        return self.get("judge")

    @property
    def train(self) -> Group:
        """Training processes."""
        return self["train"]


@dataclass(frozen=True)
class Run:
    """One experiment while it runs."""

    config: RunConfig
    folder: RunFolder
    fence: Fence
    """Asked before each commit: raises when another driver has the run."""
    quarantine: Quarantine
    journal: Journal
    events: EventLog
    store: PolicyStore
    cluster: Cluster
    groups: Groups
    tracker: Tracker
    stop: StopRequest
    acceptance: Sequence[AcceptanceRule]
    """The rule of each stage."""
    train_prompts: list[Prompt]
    held_out_prompts: list[Prompt]
    test_prompts: list[Prompt] = field(default_factory=list)
    """Empty without `prompts.test`."""
    stage_prompts: Mapping[int, list[Prompt]] = field(default_factory=dict)
    """Training prompts of the stages that have a source of their own, by index."""
    judge_models: Mapping[str, PolicyVersion] = field(default_factory=dict)
    """Models of judges that lie on this machine, by their names in the config."""
    mirror: Mirror | None = None
    """Copies what is committed to object storage, when that is configured."""

    plug_ins: PlugIns = field(default_factory=PlugIns)
    """What the user's own components and functions are made of."""

    def served(self) -> list[int]:
        """The version accepted at the end of each finished round, round 0 first."""
        return [result.after for result in self.journal.results()]

    def policy(self) -> PolicyVersion:
        """The version that serves now."""
        served = self.served()
        return self.store.get(served[-1] if served else 0)


@dataclass(frozen=True)
class RoundScope:
    """One round of a run: where its files are and which policy it starts from."""

    run: Run
    index: int
    policy: PolicyVersion

    @property
    def folder(self) -> RoundFolder:
        return self.run.folder.round(self.index)

    @property
    def stage(self) -> Stage:
        """The stage that the round belongs to."""
        return self.run.config.stage_of(self.index)

    @property
    def acceptance(self) -> AcceptanceRule:
        """The rule that decides on the round's candidate."""
        return self.run.acceptance[self.stage.index]

    @property
    def train_prompts(self) -> list[Prompt]:
        """The set that the round draws from."""
        return self.run.stage_prompts.get(self.stage.index, self.run.train_prompts)
