"""Rows that ask the same: repeats, which change nothing, and conflicts, which say two different things are right."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from decimal import Decimal, InvalidOperation

from policies.base.records import Json, Prompt

_NUMBERS_OF_ROWS = re.compile(r"(?:.*_)?(?:index|idx|id|uuid|uid|split|row)|__.*__", re.IGNORECASE)
"""Names of what counts or files a row and says nothing about what is right."""
_TOLD_BY_ANSWER = ("demonstration", "solution")
MAX_SHOWN = 60


def difference(one: Prompt, other: Prompt, compared: Sequence[str]) -> str | None:
    """Return what two rows that ask the same disagree on, in words; None when they agree.

    Args:
        one: a prompt.
        other: another one with the same question.
        compared: metadata that the config names: any difference counts. In other metadata, what numbers rows does not.

    Example:
        >>> ask = dict(id="a", messages=())
        >>> difference(Prompt(**ask, answer=24), Prompt(**ask, answer="24.0"), [])
        >>> difference(Prompt(**ask, answer=24), Prompt(**ask, answer=25), [])
        'the answer is 24 there and 25 here'
    """
    if same_value(one.answer) != same_value(other.answer):
        return f"the answer is {_shown(one.answer)} there and {_shown(other.answer)} here"
    for name in dict.fromkeys((*one.metadata, *other.metadata)):
        pair = one.metadata.get(name), other.metadata.get(name)
        if name in compared:
            left, right = map(same_value, pair)
        elif name in _TOLD_BY_ANSWER or _NUMBERS_OF_ROWS.fullmatch(name):
            continue
        else:
            left, right = (same_value(_without_numbers(value)) for value in pair)
        if left != right:
            return f"{name} is {_shown(pair[0])} there and {_shown(pair[1])} here"
    return None


def same_value(value: Json) -> str:
    """A text that is equal for values which mean the same: 24, 24.0 and "24"; blanks at the ends do not count."""
    return json.dumps(_canonical(value), sort_keys=True)


def _canonical(value: Json) -> Json:
    if isinstance(value, dict):
        return {key: _canonical(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_canonical(inner) for inner in value]
    if isinstance(value, bool) or value is None:
        return value
    text = " ".join(str(value).split())
    try:
        number = Decimal(text)
    except InvalidOperation:
        return text
    return str(number.normalize()) if number.is_finite() else text


def _without_numbers(value: Json) -> Json:
    if isinstance(value, Mapping):
        return {k: v for k, v in value.items() if not _NUMBERS_OF_ROWS.fullmatch(k)}
    return value


def _shown(value: Json) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= MAX_SHOWN else f"{text[:MAX_SHOWN]}..."
