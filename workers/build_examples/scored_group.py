"""The examples of one scored group, built with a seed of its own; and what a group without contrast looks like."""

from __future__ import annotations

from typing import Any

from policies.base.errors import PawlError, boundary
from policies.base.records import ScoredGroup
from policies.base.seeds import derive_rng
from policies.examples.builder import Built, PreferenceBuilder
from policies.examples.kinds import PreferencePair, SupervisedExample, UnpairedExample

EXAMPLE_RECORDS: dict[str, type[Any]] = {
    "pair": PreferencePair,
    "unpaired": UnpairedExample,
    "supervised": SupervisedExample,
}
"""The record of each kind of example."""


def build_examples(builder: PreferenceBuilder, group: ScoredGroup, seed: int, scope: str) -> Built:
    """Let `builder` make the examples of `group`; its random choices repeat with `seed`, `scope` and the prompt."""
    rng = derive_rng(seed, scope, "prefer", group.prompt.id)
    with boundary(PawlError, f"preference builder {builder.config.type!r} failed"):
        return builder.build_labelled(group, rng)


def is_uniform(group: ScoredGroup, *, desirable: bool) -> bool:
    """True if every usable attempt of the group is desirable, or every one is not."""
    seen = [feedback.desirable for feedback in group.feedback if feedback.desirable is not None]
    return bool(seen) and all(bit is desirable for bit in seen)
