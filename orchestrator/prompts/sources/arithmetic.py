"""Seeded arithmetic questions: "What is 7 times 8?"; the task of the demo, needing no data and no network."""

from __future__ import annotations

import math
from itertools import product
from typing import Literal, Self

from pydantic import Field, model_validator

from orchestrator.prompts.source import PromptSource
from policies.base.bounds import MAX_GENERATED, MAX_WHOLE
from policies.base.records import Message, Prompt
from policies.base.seeds import derive_rng

Operation = Literal["plus", "minus", "times"]

_LETTERS: dict[str, str] = {"plus": "p", "minus": "m", "times": "x"}


class ArithmeticSource(PromptSource):
    """All questions over a range of numbers, split into a training and a held-out set that never meet."""

    class Config(PromptSource.Config):
        """Settings of `arithmetic`."""

        operations: tuple[Operation, ...] = Field(default=("times",), min_length=1)
        """Which operations to ask for."""
        low: int = Field(default=2, ge=0, le=MAX_WHOLE)
        """Smallest operand."""
        high: int = Field(default=12, ge=0, le=MAX_WHOLE)
        """Largest operand."""
        split: Literal["train", "held_out", "all"] = "train"
        """Which part of the questions."""
        held_out: int = Field(default=24, ge=0, le=MAX_GENERATED)
        """How many questions are held out; the same number in both sources."""
        split_seed: int = Field(default=0, ge=-MAX_WHOLE, le=MAX_WHOLE)
        """Which questions are held out; the same seed in both sources."""
        shots: int = Field(default=0, ge=0, le=8)
        """Worked examples before the question, with operands above `high`, so that no answer is given away."""
        system: str | None = None
        """System message put before every prompt."""

        @model_validator(mode="after")
        def _sizes(self) -> Self:
            if self.low > self.high:
                raise ValueError(f"low ({self.low}) must not be above high ({self.high})")
            if len(set(self.operations)) < len(self.operations):
                raise ValueError(f"operations come twice: {', '.join(self.operations)}")
            total = len(self.operations) * (self.high - self.low + 1) ** 2
            if total > MAX_GENERATED:
                raise ValueError(
                    f"low to high gives {total} questions, more than {MAX_GENERATED}. Fix: lower high to at most "
                    f"{self.low + math.isqrt(MAX_GENERATED // len(self.operations)) - 1}"
                )
            if self.split != "all" and not 0 < self.held_out < total:
                raise ValueError(f"held_out must be between 1 and {total - 1} of {total} questions")
            return self

    config: Config

    def load(self) -> list[Prompt]:
        config = self.config
        numbers = range(config.low, config.high + 1)
        questions = [(a, op, b) for op in config.operations for a, b in product(numbers, numbers)]
        order = list(range(len(questions)))
        derive_rng(config.split_seed, "arithmetic").shuffle(order)
        held_out = set(order[: config.held_out]) if config.split != "all" else set()
        return [
            self._prompt(*question)
            for index, question in enumerate(questions)
            if config.split == "all" or (index in held_out) == (config.split == "held_out")
        ]

    def _prompt(self, a: int, operation: Operation, b: int) -> Prompt:
        messages: list[Message] = []
        if self.config.system:
            messages.append(Message(role="system", content=self.config.system))
        for shot in range(self.config.shots):
            x, y = self.config.high + 1 + 2 * shot, self.config.high + 2 + 2 * shot
            worked = f"{x} {operation} {y} is {_result(x, operation, y)}."
            messages.append(Message(role="user", content=_question(x, operation, y)))
            messages.append(Message(role="assistant", content=worked))
        messages.append(Message(role="user", content=_question(a, operation, b)))
        return Prompt(
            id=f"{a}{_LETTERS[operation]}{b}",
            messages=tuple(messages),
            answer=_result(a, operation, b),
        )


def _question(a: int, operation: Operation, b: int) -> str:
    return f"What is {a} {operation} {b}?"


def _result(a: int, operation: Operation, b: int) -> int:
    return {"plus": a + b, "minus": a - b, "times": a * b}[operation]
