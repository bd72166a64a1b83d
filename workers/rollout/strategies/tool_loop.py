"""The policy may call tools: it writes a call, reads what came of it, and goes on until it answers without one."""

from __future__ import annotations

from collections import Counter
from contextlib import ExitStack
from typing import Annotated, Any, Self

from pydantic import Field, model_validator

from policies.base.component import Component, create
from policies.base.records import Ending, Message, Prompt, ToolCall, ToolCallStatus
from policies.base.seeds import derive_seed
from workers.rollout.call_format import CALL_FORMATS, CallFormat, Parsed, RequestedCall
from workers.rollout.engine import RolloutEngine
from workers.rollout.multi_turn.strategy import ConversationStrategy, Counterpart, Reply
from workers.rollout.tool import TOOLS, Tool, ToolOutput, ToolSession


class ToolLoop(ConversationStrategy):
    """Tool-integrated reasoning (ToRA; Xiong et al. 2409.02392): calls and observations in turn, then the answer.

    What the policy gets wrong (no such tool, a call that cannot be read, bad arguments, code that raises or hangs) is
    told to it as an observation and costs it a turn. A tool that we cannot provide makes the trajectory an error.
    """

    class Config(ConversationStrategy.Config):
        """Settings of `tool_loop`."""

        tools: tuple[Annotated[Tool.Config, TOOLS.field()], ...] = Field(min_length=1)
        """What the policy may call; each keeps its state, if it has any, for one trajectory."""
        calls: Annotated[Component.Config, CALL_FORMATS.field()] = Field(
            default_factory=lambda: CALL_FORMATS.parse("fenced_code")
        )
        """How the policy writes a call and how it is shown the output."""

        @model_validator(mode="after")
        def _names_fit(self) -> Self:
            names = Counter(tool.called for tool in self.tools)
            twice = sorted(name for name, count in names.items() if count > 1)
            if twice:
                raise ValueError(f"two tools are called {twice[0]!r}. Fix: give one another `name`")
            wanted = getattr(self.calls, "tool", None)  # of formats that call one tool only
            if wanted is not None and wanted not in names:
                raise ValueError(
                    f"calls: {self.calls.type!r} calls the tool {wanted!r}, and there is none of that name "
                    f"(tools: {', '.join(sorted(names))}). Fix: set calls.tool, or the tool's `name`"
                )
            return self

    config: Config

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self._tools: dict[str, Tool] = {each.called: create(each) for each in config.tools}
        self._format: CallFormat = create(config.calls)

    def prepare(self, engine: RolloutEngine) -> None:
        for tool in self._tools.values():
            tool.prepare()
        super().prepare(engine)

    def counterpart(self, prompt: Prompt, seed: int) -> Counterpart:
        return _Tools(self._tools, self._format, seed)

    def sample_observation(self) -> tuple[Message, ...]:
        # Two calls in one turn, as a policy may write them.
        name = next(iter(self._tools))
        outputs = (ToolOutput("pawl observes first"), ToolOutput("pawl observes then"))
        return self._format.messages([(name, output) for output in outputs])

    def call_words(self) -> tuple[str, ...]:
        return self._format.call_words

    def sample_tools(self) -> tuple[dict[str, Any], ...]:
        return _schemas(self._tools, self._format)

    def close(self) -> None:
        super().close()
        for tool in self._tools.values():
            tool.close()


class _Tools(Counterpart):
    """The tools in the hands of one trajectory; a session is opened at the first call."""

    def __init__(self, tools: dict[str, Tool], call_format: CallFormat, seed: int) -> None:
        self._tools = tools
        self._format = call_format
        self._seed = seed
        self._sessions: dict[str, ToolSession] = {}

    def tools(self) -> tuple[dict[str, object], ...]:
        return _schemas(self._tools, self._format)

    def reply(self, text: str, turn: int) -> Reply:
        results = self._results(self._format.parse(text))
        if not results:
            return Reply(ending=Ending.ANSWERED)
        return Reply(
            messages=self._format.messages(results),
            calls=tuple(ToolCall(tool=name, status=output.status) for name, output in results),
        )

    def close(self) -> None:
        with ExitStack() as stack:  # all of them, also when one fails
            for session in self._sessions.values():
                stack.callback(session.close)

    def _results(self, parsed: Parsed) -> list[tuple[str, ToolOutput]]:
        """Return what every call gave, in order; nothing when there is none."""
        if parsed.problem is not None:
            name = next(iter(self._tools)) if len(self._tools) == 1 else "unknown"
            problem = f"Error: {parsed.problem}"
            return [(name, ToolOutput(problem, ToolCallStatus.UNPARSEABLE))]
        return [(call.tool, self._call(call)) for call in parsed.calls]

    def _call(self, call: RequestedCall) -> ToolOutput:
        tool = self._tools.get(call.tool)
        if tool is None:
            known = ", ".join(sorted(self._tools))
            return ToolOutput(
                f"Error: there is no tool {call.tool[:80]!r}; there is {known}",
                ToolCallStatus.UNKNOWN_TOOL,
            )
        if call.tool not in self._sessions:
            self._sessions[call.tool] = tool.open(derive_seed(self._seed, call.tool))
        return self._sessions[call.tool].call(call.arguments)


def _schemas(tools: dict[str, Tool], call_format: CallFormat) -> tuple[dict[str, Any], ...]:
    return tuple(tool.schema() for tool in tools.values()) if call_format.offers_schemas else ()
