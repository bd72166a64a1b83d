"""Supervised examples: single sequences to imitate."""

from __future__ import annotations

from typing import ClassVar

from policies.examples.kind import Example, TokenSequence


class SupervisedExample(Example):
    """One trajectory to imitate. Example: `SupervisedExample(id="r1.7x8.0", prompt_id="7x8", sequence=...)`."""

    kind_name: ClassVar[str] = "supervised"
    counted_as: ClassVar[str] = "demonstrations"

    sequence: TokenSequence

    def sides(self) -> dict[str, TokenSequence]:
        return {"completion": self.sequence}
