"""Answer, criticise the answer, revise it: one trajectory with several policy turns and fixed instructions between."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from policies.base.bounds import MAX_ROUNDS
from policies.base.records import Ending, Message, Prompt
from workers.rollout.multi_turn.strategy import ConversationStrategy, Counterpart, Outcome, Reply


class SelfRefine(ConversationStrategy):
    """The loop of Madaan et al. 2023, "Self-Refine" (arXiv 2303.17651), inside one conversation.

    The policy's turns are answer, critique, revision, critique, revision, ...: `2 * rounds + 1` of them.
    """

    class Config(ConversationStrategy.Config):
        """Settings of `self_refine`."""

        critique: str = Field(
            default="Check your answer. Say what is wrong with it, or that it is right.",
            min_length=1,
        )
        """Instruction after an answer."""
        revise: str = Field(default="Now give your final answer.", min_length=1)
        """Instruction after a critique."""
        rounds: int = Field(default=1, ge=1, le=MAX_ROUNDS)
        """Critiques, each followed by a revision."""
        grade: Literal["answer", "revision"] = "revision"
        """What verifiers grade: the first answer, or the newest revision that was written to its end."""

        @model_validator(mode="after")
        def _enough_turns(self) -> Self:
            turns = 2 * self.rounds + 1
            if self.max_turns < turns:
                raise ValueError(
                    f"max_turns is {self.max_turns}, but {self.rounds} rounds of critique and revision take {turns} "
                    f"policy turns. Fix: max_turns: {turns}, or fewer rounds"
                )
            return self

    config: Config

    def counterpart(self, prompt: Prompt, seed: int) -> Counterpart:
        return Instructions(self.config)


class Instructions(Counterpart):
    """Says the two instructions in turn."""

    def __init__(self, config: SelfRefine.Config) -> None:
        self._config = config
        self._replied = 0

    def reply(self, text: str, turn: int) -> Reply:
        self._replied = turn + 1
        if turn == 2 * self._config.rounds:
            return Reply(ending=Ending.ANSWERED)
        instruction = self._config.revise if turn % 2 else self._config.critique
        return Reply(messages=(Message(role="user", content=instruction),))

    def outcome(self) -> Outcome:
        if self._config.grade == "answer":
            return Outcome(graded_turn=0)
        # Turns 0, 2, 4, ... are answers. One that was replied to was written to its end; a cut one is graded only
        # where there is no other.
        answers = range(0, self._replied, 2)
        return Outcome(graded_turn=answers[-1] if answers else None)
