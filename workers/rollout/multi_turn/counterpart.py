"""The counterpart seam: what answers the policy in one trajectory (tools, an environment, instructions)."""

from __future__ import annotations

from dataclasses import dataclass

from policies.base.records import Ending, Message, Probability, Prompt, ToolCall


@dataclass(frozen=True)
class Reply:
    """The reply that follows a policy turn."""

    messages: tuple[Message, ...] = ()
    """The observation; none ends the trajectory."""
    calls: tuple[ToolCall, ...] = ()
    """The tool calls that the observation answers."""
    ending: Ending | None = None
    """Given: the trajectory ends here, for this reason."""


@dataclass(frozen=True)
class Outcome:
    """Facts of a conversation that has ended, whatever ended it."""

    score: Probability | None = None
    graded_turn: int | None = None
    """Index among the policy's turns of the one that verifiers grade; None is the last one."""


class Counterpart:
    """Answers the policy in one trajectory. Its methods may block: they run in threads, one at a time."""

    def opening(self, prompt: Prompt) -> tuple[Message, ...]:
        """Messages that follow the prompt's own before the first policy turn."""
        return ()

    def framed(self, prompt: Prompt) -> tuple[Message, ...]:
        """The prompt's messages, among those that the counterpart puts around them; asked after `opening`."""
        return prompt.messages

    def tools(self) -> tuple[dict[str, object], ...]:
        """JSON schemas for the chat template, besides the prompt's own."""
        return ()

    def reply(self, text: str, turn: int) -> Reply:
        """Answer policy turn number `turn` (from 0), the last allowed one too. An exception makes the trajectory
        an error.
        """
        raise NotImplementedError

    def outcome(self) -> Outcome:
        """Asked once, at the end, unless the trajectory is an error."""
        return Outcome()

    def close(self) -> None:
        """Give back what the counterpart holds; called once, whatever happened.

        After a call that did not return in time it is made while that call still runs, so that it can free it.
        """
        return
