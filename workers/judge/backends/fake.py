"""A scripted judge model: no network, no weights, the same reply to the same question everywhere.

It is shipped for tests and for trying a config. It finds the fenced texts of the shipped prompts (and of
any prompt whose last fenced texts are the attempts, in order) and answers in the form that was asked for.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import ClassVar, Literal, cast

from pydantic import Field

from policies.base.bounds import MAX_SCORE, MAX_TOKENS
from policies.base.component import Component
from policies.base.seeds import derive_rng
from workers.judge.judge import BackendContext, JudgeBackend, Question, Reply, Usage

_FENCED = re.compile(r"<<<([0-9a-f]{8,64})\n(.*?)\n\1>>>", re.DOTALL)
_WINNERS = ("A", "B", "tie")

Rule = Literal["longer", "shorter", "first", "second", "tie", "coin", "garbage", "error", "raise"]


def _counted(question: Question, reply: Reply) -> Reply:
    """The reply with what it took; its tokens are words."""
    words = [
        sum(len(m.content.split()) for m in question.messages),
        len((reply.text or "").split()),
    ]
    return replace(reply, usage=Usage(1, *words))


class FakeBackend(JudgeBackend):
    """Answers by `rule`."""

    takes_choices: ClassVar[bool] = True

    class Config(Component.Config):
        """Settings of the script."""

        rule: Rule = "longer"
        """What it prefers: the `longer` or `shorter` text, always the one shown `first` or `second` (position
        bias), always a `tie`, by a `coin` seeded by the question. `garbage` replies cannot be read, `error`
        replies with errors, `raise` raises."""
        low: float = Field(default=1.0, ge=-MAX_SCORE, le=MAX_SCORE)
        """Worst rating it gives to a rubric question."""
        high: float = Field(default=10.0, ge=-MAX_SCORE, le=MAX_SCORE)
        """Best rating it gives."""
        full_length: int = Field(default=100, ge=1, le=MAX_TOKENS)
        """Characters of text that the rule `longer` rates best, `shorter` worst."""

    def __init__(self, config: Component.Config, *, context: BackendContext) -> None:
        self.config = cast(FakeBackend.Config, config)

    def identity(self) -> str:
        return f"fake: {self.config.rule}"

    def ask(self, questions: Sequence[Question]) -> list[Reply]:
        if self.config.rule == "raise":
            raise RuntimeError("the fake judge was told to raise")
        return [_counted(question, self._reply(question)) for question in questions]

    def _reply(self, question: Question) -> Reply:
        rule = self.config.rule
        if rule == "error":
            return Reply(text=None, error="the fake judge was told to fail")
        if rule == "garbage":
            return Reply(text="I cannot decide that.\nWinner: A\nWinner: B\nScore: 1\nScore: 2")
        content = question.messages[-1].content
        lengths = [len(match.group(2)) for match in _FENCED.finditer(content)]
        luck = derive_rng(content.encode("utf-8", "replace"), question.vote).random()
        if "Winner:" in _FENCED.sub("", content):
            return Reply(text=f"By rule {rule}.\nWinner: {self._winner(lengths[-2:], luck)}")
        return Reply(text=f"By rule {rule}.\nScore: {self._score(lengths[-1], luck):.4f}")

    def _winner(self, lengths: Sequence[int], luck: float) -> str:
        first, second = lengths
        difference = first - second
        by_rule: dict[str, Callable[[], int]] = {
            "longer": lambda: 2 if difference == 0 else int(difference < 0),
            "shorter": lambda: 2 if difference == 0 else int(difference > 0),
            "first": lambda: 0,
            "second": lambda: 1,
            "tie": lambda: 2,
            "coin": lambda: int(luck * 3),
        }
        return _WINNERS[by_rule[self.config.rule]()]

    def _score(self, length: int, luck: float) -> float:
        share = min(1.0, length / self.config.full_length)
        by_rule = {
            "longer": share,
            "shorter": 1.0 - share,
            "first": 1.0,
            "second": 0.0,
            "coin": luck,
        }
        return self.config.low + by_rule.get(self.config.rule, 0.5) * (
            self.config.high - self.config.low
        )
