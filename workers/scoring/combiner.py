"""The combiner seam: from the scores of all sources, by name, to the one score that is learned from."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence

from policies.base.component import Component, Family
from policies.base.errors import explain
from policies.base.source_scores import SourceScore

Scores = Mapping[str, SourceScore]
"""What the sources say of one thing, an attempt or a step; those that abstained are missing."""


class Combiner(Component):
    """Makes the usable score. Pure: the same scores give the same, in whatever order the attempts stand."""

    class Config(Component.Config):
        """Settings that every combiner has: none."""

        def names(self) -> tuple[str, ...]:
            """Sources that the settings name: verifiers and judges by `name`, or by type where they have none."""
            return ()

        def needs(self) -> tuple[str, ...]:
            """Those of them without which nothing gets a score."""
            return ()

        def refused(self, sources: Mapping[str, bool]) -> str | None:
            """Say in four parts why these settings do not fit the sources; None where they do.

            Args:
                sources: by name, whether the scores may be any finite number instead of [0, 1].
            """
            unknown = next((name for name in self.names() if name not in sources), None)
            if unknown is not None:
                return _no_such_source(self.type, unknown, sources)
            return self.refused_scores(sources)

        def refused_scores(self, sources: Mapping[str, bool]) -> str | None:
            """The same, once all names are known: raw scores and others do not add up unless this says otherwise."""
            return mixed(self.type, sources)

        def gives_raw(self, sources: Mapping[str, bool]) -> bool:
            """Tell whether the usable score may leave [0, 1]."""
            return any(sources.values())

    def __init__(self, config: Config) -> None:
        self.config = config

    def combine(self, group: Sequence[Scores]) -> Sequence[float | None]:
        """Return the usable score of each thing in `group`, in order; None for what has none.

        Args:
            group: all attempts at one prompt (or all of their steps) that a source scored.
        """
        raise NotImplementedError

    def decisive(self, scores: Scores, combined: float | None) -> float | None:
        """Return the score that tells right from wrong (`feedback.desirable_at`): the usable one."""
        return combined


COMBINERS = Family("combiner", package="workers.scoring.combiners", base=Combiner)


def mixed(combiner: str, sources: Mapping[str, bool]) -> str | None:
    """Say in four parts that some scores are raw and others lie in [0, 1]; None where all are of one sort."""
    raw = [name for name, is_raw in sources.items() if is_raw]
    if not raw or len(raw) == len(sources):
        return None
    rest = [name for name in sources if name not in raw]
    return explain(
        f"{combiner} of {', '.join(sources)} means nothing: {', '.join(raw)} gives any number, {', '.join(rest)} "
        "a number in [0, 1]",
        value=combiner,
        where="feedback.combine",
        fix=f"set {remedy(raw)}, or combine: {{type: tiers, sources: [{rest[0]}, {raw[0]}]}}",
    )


def remedy(raw: Sequence[str]) -> str:
    """The setting that brings raw scores to [0, 1]. Example: `feedback.normalize: {reward_model: rank}`."""
    return f"feedback.normalize: {{{', '.join(f'{name}: rank' for name in raw)}}}"


def _no_such_source(combiner: str, name: str, sources: Mapping[str, bool]) -> str:
    close = difflib.get_close_matches(name, sources, n=1)
    hint = f"did you mean {close[0]!r}? " if close else ""
    return explain(
        f"the combiner {combiner!r} reads a source that no verifier and no judge has",
        value=name,
        where="feedback.combine",
        fix=f"{hint}known: {', '.join(sources)}",
    )
