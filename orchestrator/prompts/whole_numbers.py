"""Whole numbers that a table with gaps turned into floats: 56 is written as 56.0 where another row has none."""

from __future__ import annotations

from collections.abc import Sequence

from policies.base.records import Json, Prompt

_MAX_EXACT = 2.0**53
"""From here on a float may not be the number that was meant."""


def restore_whole(prompts: Sequence[Prompt], names: Sequence[str]) -> list[Prompt]:
    """The prompts with their answers, and the metadata of these names, as the whole numbers that they were.

    A column of numbers in which some are missing and all others are floats without a fraction was a column of whole
    numbers before pandas (or what else has no whole number for "none") wrote it. Without a gap floats stay floats.
    """
    found = list(prompts)
    if _is_widened([p.answer for p in found]):
        found = [p.model_copy(update={"answer": _whole(p.answer)}) for p in found]
    for name in names:
        if _is_widened([p.metadata.get(name) for p in found]):
            found = [
                p.model_copy(
                    update={"metadata": {**p.metadata, name: _whole(p.metadata.get(name))}}
                )
                for p in found
            ]
    return found


def _is_widened(values: Sequence[Json]) -> bool:
    known = [value for value in values if value is not None]
    return 0 < len(known) < len(values) and all(
        isinstance(value, float) and value.is_integer() and abs(value) < _MAX_EXACT
        for value in known
    )


def _whole(value: Json) -> Json:
    return int(value) if isinstance(value, float) else value
