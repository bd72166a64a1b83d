"""Counts what each verifier and judge did in a round, read from the shards' summed counts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

_KEYS = frozenset({"scored", "abstained", "errors", "failed"})
"""What every verifier or judge counts, whatever else it does."""


class SourceCounts(NamedTuple):
    """Sums over all shards for one verifier or judge."""

    stage: str
    """`verify` or `judge`."""
    source: str
    scored: float
    abstained: float
    errors: float
    """Error verdicts."""
    score_sum: float
    comparisons: float
    agreed: float
    disagreed: float
    preferred_first: float
    """Comparisons in which each attempt fared better when it was shown first."""
    ties: float
    cache_hits: float
    calls: float
    """Requests to a judge's model, repeats included."""
    prompt_tokens: float
    completion_tokens: float
    uncounted: float
    """Calls of which nobody said how many tokens they took."""
    inconsistent: float
    """Shards in which it said something else of the same trajectory when asked again."""

    metrics: Mapping[str, float]
    """Means of the numbers that a user's function gave besides its scores, by name."""

    @property
    def asked(self) -> float:
        return self.scored + self.abstained + self.errors


def count_sources(counts: Mapping[str, float]) -> list[SourceCounts]:
    """One entry per verifier and judge, by name."""
    found = []
    # Judges count failed questions as `errors` and error verdicts as `failed`.
    for stage, error_key in (("verify", "errors"), ("judge", "failed")):
        marker = f"{stage}/sources/"
        # A source that is called after a file (`/home/ann/mine.py:Mine`) has slashes in its own name.
        parts = [n.removeprefix(marker).rpartition("/") for n in counts if n.startswith(marker)]
        for source in sorted({source for source, _, key in parts if key in _KEYS}):

            def value(key: str, prefix: str = f"{marker}{source}/") -> float:
                return counts.get(prefix + key, 0.0)

            found.append(
                SourceCounts(
                    stage=stage,
                    source=source,
                    scored=value("scored"),
                    abstained=value("abstained"),
                    errors=value(error_key),
                    score_sum=value("score_sum"),
                    comparisons=value("comparisons"),
                    agreed=value("agreed"),
                    disagreed=value("disagreed"),
                    preferred_first=value("preferred_first"),
                    ties=value("ties"),
                    cache_hits=value("cache_hits"),
                    calls=value("calls"),
                    prompt_tokens=value("prompt_tokens"),
                    completion_tokens=value("completion_tokens"),
                    uncounted=value("uncounted"),
                    inconsistent=value("fickle"),
                    metrics=_means(counts, f"{marker}{source}/metrics/"),
                )
            )
    return found


def _means(counts: Mapping[str, float], prefix: str) -> dict[str, float]:
    """Mean by name, from the entries `<prefix><name>/sum` and `<prefix><name>/count`."""
    names = [
        n.removeprefix(prefix).removesuffix("/sum")
        for n in counts
        if n.startswith(prefix) and n.endswith("/sum")
    ]
    return {
        name: counts[f"{prefix}{name}/sum"] / counts[f"{prefix}{name}/count"]
        for name in names
        if counts.get(f"{prefix}{name}/count")
    }
