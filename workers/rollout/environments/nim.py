"""Nim with one heap: take stones in turns; whoever takes the last one wins."""

from __future__ import annotations

import re
from collections.abc import Mapping
from types import MappingProxyType
from typing import Literal

from pydantic import Field

from policies.base.bounds import MAX_COUNT
from policies.base.errors import InputError, explain
from policies.base.records import Message, Prompt
from policies.base.seeds import derive_rng
from workers.rollout.environment import Environment, Observation, observe, whole_number

_WORDS: Mapping[str, int] = MappingProxyType(
    {
        word: number
        for number, word in enumerate(
            ("one", "two", "three", "four", "five", "six", "seven", "eight", "nine"), start=1
        )
    }
)
_MOVE = re.compile(r"\b(\d{1,9}|" + "|".join(_WORDS) + r")\b", re.IGNORECASE)


class Nim(Environment):
    """The policy moves first, against a scripted opponent.

    A prompt's metadata may say `stones` and `take`; what it does not say comes from the settings. A move is the
    first number that the policy writes, in digits or as a word up to nine.
    """

    class Config(Environment.Config):
        """Settings of `nim`."""

        stones: int = Field(default=10, ge=1, le=MAX_COUNT)
        """Stones at the start."""
        take: int = Field(default=3, ge=1, le=MAX_COUNT)
        """Most stones that may be taken at once; at least one must be."""
        opponent: Literal["random", "greedy", "perfect"] = "random"
        """How the other side plays: any move; as many as allowed; or the winning move where there is one."""
        blunders: float = Field(default=0.0, ge=0, le=1)
        """Share of the opponent's moves that are drawn at random instead."""
        illegal: Literal["told_once", "loses"] = "told_once"
        """What an illegal or unreadable move does: the first one is answered and may be made again; or it loses."""
        item: str = "stones"
        """What the heap is made of, in the replies; a prompt's metadata may say `item` too."""
        ask: str = "How many do you take? Say a number from 1 to {most}."
        """How every reply ends; `{most}` stands for the largest legal move. May be empty."""

    config: Config

    def reset(self, prompt: Prompt, seed: int) -> tuple[Message, ...]:
        self._left = whole_number(prompt, "stones", self.config.stones)
        self._take = whole_number(prompt, "take", self.config.take)
        item = prompt.metadata.get("item", self.config.item)
        if self._left < 1 or self._take < 1 or not isinstance(item, str):
            raise InputError(
                explain(
                    "no game can start: stones and take must be at least 1, and item a word",
                    value={"stones": self._left, "take": self._take, "item": item},
                    where=f"metadata of prompt {prompt.id!r}",
                    fix="correct the prompt, or rollout.strategy.environment",
                )
            )
        self._item = item
        self._rng = derive_rng(seed, "nim")
        self._warned = False
        self._won = False
        return ()

    def step(self, action: str) -> Observation:
        move = read_move(action)
        if move is None or not 1 <= move <= min(self._take, self._left):
            return self._illegal()
        self._left -= move
        if self._left == 0:
            self._won = True
            return Observation(messages=(), done=True)
        answer = self._answer()
        self._left -= answer
        if self._left == 0:
            return Observation(messages=(), done=True)
        return self._say(f"I take {answer}.")

    def outcome(self) -> float:
        return float(self._won)

    def _illegal(self) -> Observation:
        if self._warned or self.config.illegal == "loses":
            return Observation(messages=(), done=True)
        self._warned = True
        return self._say("That is not allowed.")

    def _say(self, what: str) -> Observation:
        ask = self.config.ask.replace("{most}", str(min(self._take, self._left)))
        return observe(f"{what} {self._left} {self._item} left. {ask}".rstrip())

    def _answer(self) -> int:
        most = min(self._take, self._left)
        if self.config.opponent == "random" or self._rng.random() < self.config.blunders:
            return self._rng.randint(1, most)
        if self.config.opponent == "greedy":
            return most
        return winning_move(self._left, self._take) or self._rng.randint(1, most)


def read_move(text: str) -> int | None:
    """The first number in `text`, or None.

    Example:
        >>> read_move("I take two stones, then 3.")
        2
    """
    found = _MOVE.search(text)
    if found is None:
        return None
    word = found.group().lower()
    return _WORDS[word] if word in _WORDS else int(word)


def winning_move(left: int, take: int) -> int | None:
    """The move after which the other side cannot win: it leaves a multiple of `take` + 1. None where there is none.

    Bouton 1901, "Nim, a game with a complete mathematical theory", for one heap with a bound on each move.
    """
    return left % (take + 1) or None
