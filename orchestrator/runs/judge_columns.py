"""The columns that judges have in tables of rounds: score, calls and tokens of each."""

from __future__ import annotations

from collections.abc import Sequence

from policies.base.records import RoundResult


def judge_columns(results: Sequence[RoundResult]) -> list[tuple[str, str]]:
    """Heading and metric of each judge's score, calls and tokens, in the rounds that have them."""
    names = {name for result in results for name in result.metrics if name.startswith("judge/")}
    found: list[tuple[str, str]] = []
    for source in sorted({n.removeprefix("judge/").rpartition("/")[0] for n in names}):
        kinds = {
            "": "score",
            " calls": "calls",
            " tokens in": "prompt_tokens",
            " out": "completion_tokens",
        }
        for heading, kind in kinds.items():
            if (name := f"judge/{source}/{kind}") in names:
                found.append((f"{source[:24]}{heading}", name))
    return found
