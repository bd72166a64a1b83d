"""Kinds of training examples: record classes with behaviour, and the token sequences that their records hold.

A kind is a subclass of `Example` with a `kind_name`. Its builders make it, its losses name it, and the marker of a file
remembers it. Those that ship are the files of `kinds/`; a user's own is a file that its builder and its loss import.
"""

from __future__ import annotations

import pkgutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar, Self

from pydantic import model_validator

from policies.base.errors import ConfigurationError, explain
from policies.base.records import Feedback, Record, ScoredGroup, Trajectory
from policies.storage.parquet import json_fields

Value = str | int | float | bool | None
"""A cell of a table."""


class TokenSpan(Record):
    """Positions of one policy turn in a sequence. Example: `TokenSpan(start=14, end=31)`."""

    start: int
    end: int


class LabelledStep(Record):
    """A judged step: its positions in a sequence. Example: `LabelledStep(start=14, end=22, desirable=True)`."""

    start: int
    end: int
    desirable: bool


class TokenSequence(Record):
    """Tokens of one trajectory ready for a loss.

    Example: `TokenSequence(trajectory_id="r1.7x8.0", policy_version=0, token_ids=(1, 5, 9), loss_mask=(0, 0, 1),
    logprobs=(0.0, 0.0, -0.3))`.
    """

    trajectory_id: str
    policy_version: int
    token_ids: tuple[int, ...]
    loss_mask: tuple[int, ...]
    """1 where the policy wrote the token. [T]"""
    logprobs: tuple[float, ...]
    """Behaviour log-probs; 0.0 where the mask is 0. [T] Empty where the policy did not write the tokens: they are then
    scored anew, whatever was recorded."""
    turns: tuple[TokenSpan, ...] = ()
    """The policy's turns, in order: what turn-weighted losses read. Empty: the scored tokens are one turn."""
    steps: tuple[LabelledStep, ...] = ()
    """The judged steps, in order: what step losses read."""

    @property
    def prompt(self) -> tuple[int, ...]:
        """The tokens before the first scored one; all of them where none is."""
        scored = 1 in self.loss_mask
        return self.token_ids[: self.loss_mask.index(1)] if scored else self.token_ids

    @property
    def num_scored(self) -> int:
        """Tokens that count in the loss."""
        return sum(self.loss_mask)

    @model_validator(mode="after")
    def _aligned(self) -> Self:
        lengths = {len(self.token_ids), len(self.loss_mask), len(self.logprobs or self.token_ids)}
        if len(lengths) > 1:
            raise ValueError("token_ids, loss_mask and logprobs must have one length")
        return self

    @classmethod
    def of(
        cls, trajectory: Trajectory, feedback: Feedback | None = None, *, scored_from: int = 0
    ) -> Self:
        """The whole trajectory, scored where the policy wrote.

        Args:
            trajectory: what was sampled.
            feedback: gives the labels of its steps, if it has any.
            scored_from: position before which nothing is scored: what a pair's two sides share.
        """
        mask = trajectory.loss_mask
        if scored_from:
            mask = tuple(m if i >= scored_from else 0 for i, m in enumerate(mask))
        known = trajectory.logprobs
        starts = [trajectory.start_of_turn(i) for i in range(len(trajectory.turns))]
        return cls(
            trajectory_id=trajectory.id,
            policy_version=trajectory.policy_version,
            token_ids=trajectory.token_ids,
            loss_mask=mask,
            logprobs=tuple(p if m else 0.0 for p, m in zip(known, mask, strict=bool(known))),
            turns=tuple(
                TokenSpan(start=start, end=start + len(turn.token_ids))
                for start, turn in zip(starts, trajectory.turns, strict=True)
                if turn.role == "policy"
            ),
            steps=tuple(
                LabelledStep(
                    start=starts[step.span.turn] + step.span.start,
                    end=starts[step.span.turn] + step.span.end,
                    desirable=step.desirable,
                )
                for step in (feedback.steps if feedback is not None else ())
            ),
        )


class Example(Record):
    """Whatever a loss learns from as one thing: sequences of tokens with their masks, and what is known of them.

    What a kind does not say for itself follows from its fields: those that hold a `TokenSequence`, or a tuple of them,
    are its sequences, in order; numbers, texts and bits are facts about them.
    """

    kind_name: ClassVar[str] = ""
    counted_as: ClassVar[str] = "examples"
    """Plural for the metric `train/...` of how many there are."""
    fewest_sequences: ClassVar[int] = 1
    """Fewest sequences of an example: so many attempts at a prompt it takes to make one."""

    id: str
    prompt_id: str
    weight: float = 1.0
    """What the example's loss is multiplied with; set by `preferences.weight_by`."""

    @classmethod
    def __pydantic_init_subclass__(cls, **kwargs: Any) -> None:
        """Refuse a kind under the name of one that ships, and free JSON, which no one else could read back."""
        super().__pydantic_init_subclass__(**kwargs)
        taken = cls.kind_name in shipped_names()
        if taken and not cls.__module__.startswith("policies.examples.kinds."):
            raise ConfigurationError(
                explain(
                    "a kind of example needs a name of its own",
                    value=cls.kind_name,
                    where=f"kind_name of {cls.__name__}",
                    fix="write `kind_name: ClassVar[str] = ...` in the class, with a name that no shipped kind has",
                )
            )
        if cls.kind_name and (untyped := json_fields(cls)):
            raise ConfigurationError(
                explain(
                    "the fields of an example are numbers, texts, bits, tuples of these and records of these",
                    value=untyped,
                    where=f"fields of {cls.__name__}",
                    fix="give each field one of these types",
                )
            )

    def sides(self) -> dict[str, TokenSequence]:
        """Return the sequences in order, each under the name of its column in tables."""
        found: dict[str, TokenSequence] = {}
        for name in type(self).model_fields:
            value = getattr(self, name)
            if isinstance(value, TokenSequence):
                found[name] = value
            elif isinstance(value, tuple):
                every = [v for v in value if isinstance(v, TokenSequence)]
                found |= {f"{name}_{i}": v for i, v in enumerate(every, start=1)}
        return found

    def sequences(self) -> tuple[TokenSequence, ...]:
        """Return the token sequences, in order."""
        return tuple(self.sides().values())

    def problem(self) -> str | None:
        """Tell why the example cannot be learned from, as a reason to count it under, or None."""
        sequences = self.sequences()
        if len(sequences) < self.fewest_sequences:
            return "too_few_sequences"
        if not all(any(s.loss_mask) for s in sequences):
            return "nothing_scored"
        if any(s.loss_mask[0] for s in sequences):
            return "no_prompt"  # nothing predicts the first token, and TRL counts it in the length all the same
        if len({s.prompt for s in sequences}) > 1:
            return "prompt_differs"  # a loss compares sequences given the same prompt
        return None

    def row(self) -> dict[str, Value]:
        """Return the facts for people, as cells of a table: neither ids nor tokens nor the weight."""
        facts = {name: getattr(self, name) for name in type(self).model_fields}
        return plain_facts(facts)

    def counts(self) -> dict[str, float]:
        """Return what the example adds to the sums of its shard, from which the driver makes metrics."""
        return {}

    def label(self) -> bool | None:
        """Return the bit of a kind with good and bad examples: each optimizer step then gets both."""
        return None

    def scores(self) -> tuple[float, ...] | None:
        """Return the score of each sequence, in order; None where they have none of their own."""
        return None

    def favours(self) -> bool:
        """Tell whether something in it is to become likelier."""
        return True

    def labelled(self, group: ScoredGroup) -> Self:
        """Return the example with what the sources of its group say of it."""
        return self

    def with_sequences(self, change: Callable[[TokenSequence], TokenSequence]) -> Self:
        """Return the example with every sequence changed."""
        changed: dict[str, Any] = {}
        for name in type(self).model_fields:
            value = getattr(self, name)
            if isinstance(value, TokenSequence):
                changed[name] = change(value)
            elif isinstance(value, tuple) and any(isinstance(v, TokenSequence) for v in value):
                changed[name] = tuple(map(change, value))
        return self.model_copy(update=changed)

    @classmethod
    def number_names(cls) -> tuple[str, ...]:
        """Return the fields whose values a loss finds in `ScoredBatch.values`: numbers and bits."""
        fields = cls.model_fields.items()
        return tuple(n for n, f in fields if f.annotation in (bool, int, float) and n != "weight")


def plain_facts(columns: dict[str, Any]) -> dict[str, Value]:
    """Those of an example's columns that are facts for people."""
    left_out = ("id", "prompt_id", "weight")
    return {
        name: value
        for name, value in columns.items()
        if name not in left_out and (value is None or isinstance(value, (str, int, float, bool)))
    }


def shipped_names() -> frozenset[str]:
    """Names of the kinds that ship: those of the files in `kinds/`."""
    folder = Path(__file__).with_name("kinds")
    return frozenset(module.name for module in pkgutil.iter_modules([str(folder)]))
