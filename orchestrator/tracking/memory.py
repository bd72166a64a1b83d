"""A tracking server in memory: for tests, and to look at what a run would send."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from orchestrator.runs.tables import Row
from orchestrator.tracking.push import Point
from orchestrator.tracking.spool import EndStatus, TrackedRun
from policies.base.records import PolicyVersion


@dataclass
class MemorySink:
    """Keeps what a server would have; can be told to fail. Shared by reconnecting senders in tests."""

    runs: dict[str, str] = field(default_factory=dict)
    """Status by run: the run's name, or `<name>/<round>`."""
    params: dict[str, str] = field(default_factory=dict)
    tags: dict[str, dict[str, str]] = field(default_factory=dict)
    points: dict[str, set[Point]] = field(default_factory=dict)
    tables: dict[str, list[Row]] = field(default_factory=dict)
    artifacts: dict[str, bytes] = field(default_factory=dict)
    registered: dict[int, PolicyVersion] = field(default_factory=dict)
    calls: list[str] = field(default_factory=list)
    before_call: Callable[[str], None] = lambda _: None
    """Called with the operation's name first; raise `TrackingError` or `TrackingRefused` here, or sleep."""
    _run: str = ""

    def open_run(self, run: TrackedRun, at: int) -> None:
        self._enter("open_run")
        self._run = run.name
        self.runs[run.name] = "RUNNING"
        self.params = {**run.params, **self.params}
        self.tags[run.name] = dict(run.tags)

    def open_round(self, round_index: int, tags: Mapping[str, str], start: int) -> None:
        self._enter("open_round")
        self.runs.setdefault(self._name(round_index), "RUNNING")
        self.tags[self._name(round_index)] = dict(tags)

    def metrics(self, round_index: int | None, points: Sequence[Point]) -> None:
        self._enter("metrics")
        self.points.setdefault(self._name(round_index), set()).update(points)

    def table(self, round_index: int, name: str, rows: Sequence[Row]) -> None:
        self._enter("table")
        self.tables[f"{self._name(round_index)}/{name}"] = list(rows)

    def artifact(self, path: Path, name: str) -> None:
        self._enter("artifact")
        self.artifacts[name] = path.read_bytes()

    def register(self, round_index: int, policy: PolicyVersion) -> None:
        self._enter("register")
        self.registered[round_index] = policy

    def close(self, round_index: int | None, status: EndStatus, at: int, reason: str = "") -> None:
        self._enter("close")
        self.runs[self._name(round_index)] = status

    def history(self, round_index: int | None, metric: str) -> list[tuple[int, float]]:
        """Step and value of one metric, by step."""
        points = self.points.get(self._name(round_index), set())
        return sorted((p.step, p.value) for p in points if p.name == metric)

    def _enter(self, operation: str) -> None:
        self.before_call(operation)
        self.calls.append(operation)

    def _name(self, round_index: int | None) -> str:
        return self._run if round_index is None else f"{self._run}/{round_index}"
