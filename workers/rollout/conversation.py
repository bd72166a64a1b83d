"""Conversations of a policy with a partner (tools, an environment, instructions), many at a time.

A strategy says who the partner is; `ConversationStrategy.run` does the rest: it keeps the exact token ids, asks the
engine for the next turn as soon as the partner has answered, and never lets one trajectory wait for another.
"""

from __future__ import annotations

from dataclasses import dataclass

from policies.records import Ending, Message, Probability, Prompt, ToolCall


@dataclass(frozen=True)
class Reply:
    """What follows a policy turn."""

    messages: tuple[Message, ...] = ()
    """The observation; none ends the trajectory."""
    calls: tuple[ToolCall, ...] = ()
    """The tool calls that the observation answers."""
    ending: Ending | None = None
    """Given: the trajectory ends here, for this reason."""


@dataclass(frozen=True)
class Outcome:
    """What is known when a conversation has ended, whatever ended it."""

    score: Probability | None = None
    graded_turn: int | None = None
    """Index among the policy's turns of the one that verifiers grade; None is the last one."""


class Partner:
    """What answers the policy in one trajectory. Its methods may block: they run in threads, one at a time."""

    def opening(self, prompt: Prompt) -> tuple[Message, ...]:
        """Messages that follow the prompt's own before the first policy turn."""
        return ()

    def tools(self) -> tuple[dict[str, object], ...]:
        """JSON schemas for the chat template, besides the prompt's own."""
        return ()

    def reply(self, text: str, turn: int) -> Reply:
        """Answer policy turn number `turn` (from 0). An exception makes the trajectory an error."""
        raise NotImplementedError

    def outcome(self) -> Outcome:
        """Asked once, at the end."""
        return Outcome()

    def close(self) -> None:
        """Give back what the partner holds; called once, whatever happened."""
        return
