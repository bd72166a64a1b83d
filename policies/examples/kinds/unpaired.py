"""Unpaired examples: single sequences, each with a bit that calls it desirable or not."""

from __future__ import annotations

from typing import ClassVar

from policies.examples.kind import Example, TokenSequence


class UnpairedExample(Example):
    """One trajectory with a desirable bit (KTO family). Example: `UnpairedExample(id="r1.7x8.0", ...)`."""

    kind_name: ClassVar[str] = "unpaired"

    sequence: TokenSequence
    desirable: bool
    score: float

    def sides(self) -> dict[str, TokenSequence]:
        return {"completion": self.sequence}

    def counts(self) -> dict[str, float]:
        """Examples and scored tokens of each class, the latter under the names that pairs have for their sides."""
        good, tokens = int(self.desirable), self.sequence.num_scored
        return {
            "examples_desirable": good,
            "examples_undesirable": 1 - good,
            "chosen_tokens": good * tokens,
            "rejected_tokens": (1 - good) * tokens,
        }

    def label(self) -> bool:
        return self.desirable

    def scores(self) -> tuple[float, ...]:
        return (self.score,)

    def favours(self) -> bool:
        return self.desirable
