"""A vLLM engine in a process of its own, as in a run: it binds threads and patches torch for the process it is in."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from policies.base.component import create
from policies.base.records import Message, PolicyVersion
from workers.cluster.ray.cluster import RayCluster
from workers.cluster.seam import GroupSpec
from workers.rollout.engine import ENGINES, Generation, GenerationRequest


class EngineHost:
    """Runs inside the actor."""

    def __init__(self, settings: dict[str, Any], policy: PolicyVersion) -> None:
        self.engine = create(ENGINES.parse(settings), policy=policy, dtype="bfloat16", seed=0)

    def render(self, messages: Sequence[Message]) -> tuple[int, ...]:
        ids: tuple[int, ...] = self.engine.render(messages)
        return ids

    def generate(self, requests: Sequence[GenerationRequest]) -> list[Generation]:
        found: list[Generation] = self.engine.generate(requests)
        return found

    def join(
        self, first: Sequence[GenerationRequest], later: Sequence[GenerationRequest]
    ) -> tuple[list[Generation], int]:
        """Answers in order, `later` submitted when `first` was under way; and how many of `first` were done then."""
        tickets = [self.engine.submit(each) for each in first]
        found: dict[int, Generation] = {}
        for _ in range(3):
            found.update(self.engine.advance())
        done = len(found)
        tickets += [self.engine.submit(each) for each in later]
        while len(found) < len(tickets):
            found.update(self.engine.advance())
        return [found[ticket] for ticket in tickets], done

    def load_policy(self, policy: PolicyVersion) -> PolicyVersion:
        self.engine.load_policy(policy)
        return self.serving()

    def serving(self) -> PolicyVersion:
        served: PolicyVersion = self.engine.serving
        return served


class HostedEngine:
    """The same methods, called from the test."""

    def __init__(self, settings: dict[str, Any], policy: PolicyVersion) -> None:
        self.cluster = RayCluster(num_cpus=2)
        kwargs = {"settings": settings, "policy": policy}
        self.group = self.cluster.start_group(GroupSpec("engine", EngineHost, kwargs))
        self.cluster.wait_ready([self.group], 240)

    def _call(self, method: str, *args: Any) -> Any:
        return self.cluster.result(self.group.submit(method, *args), 240)

    def render(self, messages: Sequence[Message]) -> tuple[int, ...]:
        ids: tuple[int, ...] = self._call("render", messages)
        return ids

    def generate(self, requests: Sequence[GenerationRequest]) -> list[Generation]:
        found: list[Generation] = self._call("generate", requests)
        return found

    def join(
        self, first: Sequence[GenerationRequest], later: Sequence[GenerationRequest]
    ) -> tuple[list[Generation], int]:
        joined: tuple[list[Generation], int] = self._call("join", first, later)
        return joined

    def load_policy(self, policy: PolicyVersion) -> None:
        self._call("load_policy", policy)

    @property
    def serving(self) -> PolicyVersion:
        served: PolicyVersion = self._call("serving")
        return served

    def close(self) -> None:
        self.cluster.close()
