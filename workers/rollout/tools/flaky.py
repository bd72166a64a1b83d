"""Another tool that fails now and then: fault injection for experiments and tests."""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import Field, WithJsonSchema

from policies.base.component import create
from policies.base.records import Json, ToolCallStatus
from policies.base.seeds import derive_rng
from workers.rollout.tool import TOOLS, Tool, ToolOutput, ToolSession

# Spelled out: the family's own description of its members would contain this one, and so have no end.
_ANY_TOOL = WithJsonSchema({"anyOf": [{"type": "string"}, {"type": "object"}]})


class Flaky(Tool):
    """Fails a share of the calls before they reach the wrapped tool, by a draw from the session's seed.

    With `failure_rate` 0.3 the best that a policy can do with one call is 0.7: what it may learn is to call again.
    """

    class Config(Tool.Config):
        """Settings of `flaky`; name, schema and limits of a call are those of the wrapped tool."""

        tool: Annotated[Tool.Config, TOOLS.field(), _ANY_TOOL]
        """The tool that is called when the call does not fail."""
        failure_rate: float = Field(default=0.3, ge=0.0, le=1.0)
        """Share of calls that fail."""
        text: str = "Error: the interpreter is busy, try again"
        """What the policy reads then."""

        @property
        def called(self) -> str:
            return self.name or self.tool.called

    config: Config

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        inner = config.tool.model_copy(update={"name": config.called})
        self._tool: Tool = create(inner)

    def prepare(self) -> None:
        self._tool.prepare()

    def schema(self) -> dict[str, Any]:
        return self._tool.schema()

    def open(self, seed: int) -> ToolSession:
        return _FlakySession(self._tool.open(seed), derive_rng(seed, "flaky"), self.config)

    def close(self) -> None:
        self._tool.close()


class _FlakySession(ToolSession):
    def __init__(self, inner: ToolSession, rng: random.Random, config: Flaky.Config) -> None:
        self._inner = inner
        self._rng = rng
        self._config = config

    def call(self, arguments: Mapping[str, Json]) -> ToolOutput:
        if self._rng.random() < self._config.failure_rate:
            return ToolOutput(self._config.text, ToolCallStatus.FAILED)
        return self._inner.call(arguments)

    def close(self) -> None:
        self._inner.close()
