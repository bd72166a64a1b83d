"""The examples of one scored group, built with a seed of its own; and what a group without contrast looks like."""

from __future__ import annotations

from policies.base.errors import ConfigurationError, PawlError, boundary, explain
from policies.base.records import ScoredGroup
from policies.base.seeds import derive_rng
from policies.examples.builder import Built, PreferenceBuilder


def build_examples(builder: PreferenceBuilder, group: ScoredGroup, seed: int, scope: str) -> Built:
    """Let `builder` make the examples of `group`; its random choices repeat with `seed`, `scope` and the prompt."""
    rng = derive_rng(seed, scope, "prefer", group.prompt.id)
    with boundary(PawlError, f"preference builder {builder.config.type!r} failed"):
        built = builder.build_labelled(group, rng)
    other = next((e for e in built.examples if not isinstance(e, builder.kind)), None)
    if other is not None:
        raise ConfigurationError(
            explain(
                f"a preference builder made another kind of example than it names ({builder.kind_name})",
                value=type(other).__name__,
                where=f"preferences {builder.config.type!r}",
                fix="let its `kind` be the class of what `build` returns",
            )
        )
    return built


def is_uniform(group: ScoredGroup, *, desirable: bool) -> bool:
    """True if every usable attempt of the group is desirable, or every one is not."""
    seen = [feedback.desirable for feedback in group.feedback if feedback.desirable is not None]
    return bool(seen) and all(bit is desirable for bit in seen)
