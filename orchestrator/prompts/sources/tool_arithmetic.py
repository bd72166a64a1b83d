"""Seeded questions for a policy that may run Python: "What is 57 times 83 plus 6?"; the task of the tool-use demo.

Too hard to answer in the head of a small model, easy with one line of code: what is learned is to call the tool, to
write code that prints the right thing, and to repeat what it printed.
"""

from __future__ import annotations

import random
from typing import Literal, Self

from pydantic import Field, model_validator

from orchestrator.prompts.source import PromptSource
from policies.base.bounds import MAX_GENERATED, MAX_WHOLE
from policies.base.errors import InputError, explain
from policies.base.records import Json, Message, Prompt
from policies.base.seeds import derive_rng, derive_seed

Form = Literal["times", "times_plus", "times_minus", "plus_minus"]
Numbers = tuple[int, ...]

SYSTEM = (
    "You solve problems with Python. Write a code block, read its output, then give the answer."
)
_SIGNS: dict[Form, tuple[str, ...]] = {
    "times": ("*",),
    "times_plus": ("*", "+"),
    "times_minus": ("*", "-"),
    "plus_minus": ("+", "-"),
}
_WORDS = {"*": "times", "+": "plus", "-": "minus"}
_LETTERS = {"*": "x", "+": "p", "-": "m"}
_SMALLEST_THIRD = 2
_HELD_OUT_SHARE = 4
"""One possible question in so many belongs to the held-out set."""
_WORKED: Numbers = (12, 31)
_TRIES_PER_QUESTION = 1000


class ToolArithmeticSource(PromptSource):
    """Questions drawn from a range of numbers, with a training and a held-out set that never meet.

    Which set a question belongs to is a hash of its numbers and `split_seed`: the sets stay apart whatever the counts,
    and a question and its mirror image (57 times 83, 83 times 57) are in the same set.
    """

    class Config(PromptSource.Config):
        """Settings of `tool_arithmetic`."""

        forms: tuple[Form, ...] = Field(
            default=("times", "times_plus", "times_minus", "plus_minus"), min_length=1
        )
        """Kinds of questions, in equal parts: `times_plus` is "What is 57 times 83 plus 6?"."""
        low: int = Field(default=10, ge=2, le=MAX_WHOLE)
        """Smallest of the first two numbers; the third, where there is one, is 2 or more."""
        high: int = Field(default=99, ge=2, le=MAX_WHOLE)
        """Largest number in a question."""
        split: Literal["train", "held_out"] = "train"
        """Which set of questions."""
        count: int = Field(default=400, ge=1, le=MAX_GENERATED)
        """How many training questions; more of them keep the first ones."""
        held_out: int = Field(default=24, ge=1, le=MAX_GENERATED)
        """How many held-out questions."""
        split_seed: int = Field(default=0, ge=-MAX_WHOLE, le=MAX_WHOLE)
        """Which questions are drawn, and which set each belongs to; the same in both sources."""
        system: str | None = SYSTEM
        """System message put before every prompt; none leaves it out."""
        worked_example: bool = True
        """Show one solved question first (12 times 31). Without it a 135M model's code is right 1-6 % of the time."""
        demonstrations: bool = False
        """Give each prompt the ideal two-turn solution as `metadata.demonstration`: what the strategy
        `demonstrations` turns into trajectories for supervised warm-up."""

        @model_validator(mode="after")
        def _sizes(self) -> Self:
            if self.low > self.high:
                raise ValueError(f"low ({self.low}) must not be above high ({self.high})")
            if len(set(self.forms)) < len(self.forms):
                raise ValueError(f"forms come twice: {', '.join(self.forms)}")
            return self

    config: Config

    def load(self) -> list[Prompt]:
        config = self.config
        rng = derive_rng(config.split_seed, "tool_arithmetic", config.split)
        count = config.count if config.split == "train" else config.held_out
        found: dict[tuple[Form, Numbers], None] = {}
        for index in range(count):
            form = config.forms[index % len(config.forms)]
            found[self._draw(form, rng, found)] = None
        return [self._prompt(form, numbers) for form, numbers in found]

    def _draw(
        self, form: Form, rng: random.Random, taken: dict[tuple[Form, Numbers], None]
    ) -> tuple[Form, Numbers]:
        low, high = self.config.low, self.config.high
        for _ in range(_TRIES_PER_QUESTION):
            numbers: Numbers = (rng.randint(low, high), rng.randint(low, high))
            if len(_SIGNS[form]) > 1:
                numbers = (*numbers, rng.randint(_SMALLEST_THIRD, high))
            if (form, numbers) not in taken and self._split_of(form, numbers) == self.config.split:
                return form, numbers
        key = "count" if self.config.split == "train" else "held_out"
        raise InputError(
            explain(
                f"there are not enough {self.config.split} questions of the form {form!r} over "
                f"{low}..{high}: {len(taken)} of all forms were found",
                value=self.config.count if key == "count" else self.config.held_out,
                where=f"prompts.{self.config.split}.{key}",
                fix="ask for fewer questions, or widen low..high",
            )
        )

    def _split_of(self, form: Form, numbers: Numbers) -> Literal["train", "held_out"] | None:
        same = (*sorted(numbers[:2]), *numbers[2:])
        if same == _WORKED and form == "times":
            return None  # its answer is given away in every prompt
        chance = derive_seed(self.config.split_seed, "tool_arithmetic", form, *same)
        return "held_out" if chance % _HELD_OUT_SHARE == 0 else "train"

    def _prompt(self, form: Form, numbers: Numbers) -> Prompt:
        signs = _SIGNS[form]
        messages: list[Message] = []
        if self.config.system:
            messages.append(Message(role="system", content=self.config.system))
        if self.config.worked_example:
            messages.append(Message(role="user", content=_question(_WORKED, _SIGNS["times"])))
            messages.extend(_solution(_WORKED, _SIGNS["times"]))
        messages.append(Message(role="user", content=_question(numbers, signs)))
        metadata: dict[str, Json] = {}
        if self.config.demonstrations:
            solution = _solution(numbers, signs)
            metadata["demonstration"] = [
                {"role": message.role, "content": message.content} for message in solution
            ]
        return Prompt(
            id=_joined(numbers, [_LETTERS[sign] for sign in signs]),
            messages=tuple(messages),
            answer=_result(numbers, signs),
            metadata=metadata,
        )


def _joined(numbers: Numbers, between: list[str]) -> str:
    rest = (f"{word}{number}" for word, number in zip(between, numbers[1:], strict=True))
    return f"{numbers[0]}{''.join(rest)}"


def _question(numbers: Numbers, signs: tuple[str, ...]) -> str:
    return f"What is {_joined(numbers, [f' {_WORDS[sign]} ' for sign in signs])}?"


def _solution(numbers: Numbers, signs: tuple[str, ...]) -> list[Message]:
    code = _joined(numbers, [f" {sign} " for sign in signs])
    result = _result(numbers, signs)
    return [
        Message(role="assistant", content=f"```python\nprint({code})\n```"),
        Message(role="user", content=f"Output: {result}"),
        Message(role="assistant", content=f"The answer is {result}."),
    ]


def _result(numbers: Numbers, signs: tuple[str, ...]) -> int:
    # A product comes first in every form that has one, so working from left to right is right.
    total = numbers[0]
    for sign, number in zip(signs, numbers[1:], strict=True):
        total = {"*": total * number, "+": total + number, "-": total - number}[sign]
    return total
