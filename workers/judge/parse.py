"""Reading a judge model's answer, strictly: what is not exactly the asked-for last line is an error.

Thoughts are left out by the rule that holds for attempts, too (`policies.base.attempt_answer`).
"""

from __future__ import annotations

import math
import re

from policies.base.attempt_answer import without_thoughts
from policies.base.errors import JudgeError

MAX_TEXT = 2_000
"""Characters of an answer that are kept in records."""

_MARKUP = "*_` \t"
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
_SCORE = re.compile(r"([+-]?\d{1,9}(?:\.\d{1,9})?)(?:\s*/\s*(\d{1,9}(?:\.\d{1,9})?))?")
_WINNERS = {"a": 1.0, "b": 0.0, "tie": 0.5}


def cleaned(text: str, limit: int = MAX_TEXT) -> str:
    """`text` fit for a record or a log: no control characters, no broken Unicode, at most `limit` long."""
    kept = text[:limit].replace("\r\n", "\n")
    kept = _CONTROL.sub("", kept).encode("utf-8", "replace").decode("utf-8")
    return kept if len(text) <= limit else f"{kept[: limit - 3]}..."


def read_winner(text: str) -> float:
    """1.0 when the answer's last line is `Winner: A`, 0.0 for B, 0.5 for tie.

    Raises:
        JudgeError: there is no such last line, or there are several that differ.
    """
    value = _last_line_value(text, "winner")
    if value.lower() not in _WINNERS:
        raise JudgeError("unreadable answer: the winner is none of A, B, tie")
    return _WINNERS[value.lower()]


def read_score(text: str, *, low: float, high: float) -> float:
    """The number N of the last line `Score: N` (or `N/high`), on the scale from `low` to `high`.

    Raises:
        JudgeError: there is no such last line, several that differ, or N is outside the scale.
    """
    found = _SCORE.fullmatch(_last_line_value(text, "score"))
    if found is None:
        raise JudgeError("unreadable answer: the score is not a number")
    score = float(found.group(1))
    if found.group(2) is not None and not math.isclose(float(found.group(2)), high):
        raise JudgeError(f"unreadable answer: the score is not out of {high:g}")
    if not low <= score <= high:
        raise JudgeError(f"unreadable answer: the score is outside {low:g} to {high:g}")
    return score


def _last_line_value(text: str, label: str) -> str:
    """Return what follows `label:` on the last line; all lines that start so must say the same."""
    lines = [line.strip(_MARKUP) for line in (without_thoughts(text) or "").splitlines()]
    lines = [line for line in lines if line]
    values = [value for line in lines if (value := _labelled(line, label)) is not None]
    if not values or _labelled(lines[-1], label) is None:
        raise JudgeError(
            f"unreadable answer: no last line '{label.capitalize()}: ...' (refused, or cut at max_tokens?)"
        )
    if len({value.lower() for value in values}) > 1:
        raise JudgeError(
            f"unreadable answer: several lines '{label.capitalize()}: ...' that differ"
        )
    return values[-1]


def _labelled(line: str, label: str) -> str | None:
    name, colon, value = line.partition(":")
    if not colon or name.strip(_MARKUP).lower() != label:
        return None
    return value.strip(_MARKUP).removesuffix(".").strip(_MARKUP)
