r"""Final answers out of worked ones: behind `####` (GSM8K), in `\boxed{}` (MATH); letters of choices (ARC, MMLU)."""

from __future__ import annotations

import re
import string
from collections.abc import Mapping
from typing import Any

from orchestrator.prompts.row_values import RowError, as_text, shown

_THOUSANDS = re.compile(r"[-+]?\$?\d{1,3}(,\d{3})+(\.\d+)?")
_BOXED = re.compile(r"\\f?boxed\s*(\{)?")
_MAX_CHOICES = len(string.ascii_uppercase)


def has_hashes(text: Any) -> bool:
    """Tell whether a text ends as GSM8K's worked answers do."""
    return isinstance(text, str) and bool(
        text.rpartition("####")[1] and text.rpartition("####")[2].strip()
    )


def behind_hashes(text: Any, what: str) -> str:
    r"""Return what stands behind the last `####`; 1,234 becomes 1234.

    Example:
        >>> behind_hashes("6 x 12 = 72\n#### 72", "answer")
        '72'

    Raises:
        RowError: nothing does.
    """
    if not has_hashes(text):
        raise RowError(
            f"{what!r} holds no final answer behind ####, got {shown(text)}; where answers stand by themselves, set "
            "prompts.*.format: plain"
        )
    final = str(text).rpartition("####")[2].strip()
    return final.replace(",", "") if _THOUSANDS.fullmatch(final) else final


def last_boxed(text: Any) -> str | None:
    r"""Return what stands in the last `\boxed{...}`, braces in it included; None when there is none.

    Example:
        >>> last_boxed(r"so $\boxed{\frac{1}{2}}$.")
        '\\frac{1}{2}'
    """
    found = None
    for match in _BOXED.finditer(text) if isinstance(text, str) else ():
        inside = _balanced(text, match.end()) if match[1] else _bare(text, match.end())
        found = inside if inside else found
    return found


def in_box(text: Any, what: str) -> str:
    """`last_boxed`, or a refusal.

    Raises:
        RowError: there is no box.
    """
    final = last_boxed(text)
    if final is None:
        raise RowError(
            rf"{what!r} holds no final answer in \boxed{{}}, got {shown(text)}; to take such text as it stands, set "
            "prompts.*.format: plain and name it in prompts.*.columns.answer"
        )
    return final


def _balanced(text: str, start: int) -> str:
    depth = 1
    at = start
    while at < len(text):
        if text[at] == "\\":
            at += 2  # an escaped brace is no brace
            continue
        depth += {"{": 1, "}": -1}.get(text[at], 0)
        if depth == 0:
            return text[start:at].strip()
        at += 1
    return ""


def _bare(text: str, start: int) -> str:
    r"""TeX takes one token where no brace follows: `\boxed 5`."""
    return text[start : start + 1].strip("$.")


def choices_of(value: Any, what: str) -> dict[str, str]:
    """Label and text of each choice, in order: a list of texts, of {label, text}, or {label: [...], text: [...]}.

    Raises:
        RowError: it is none of these, or two choices have one label.
    """
    labels: list[Any] = list(string.ascii_uppercase)
    texts: Any = value
    if isinstance(value, Mapping):
        labels, texts = value.get("label") or labels, value.get("text")
    elif isinstance(value, list) and value and all(isinstance(v, Mapping) for v in value):
        labels = [v.get("label") for v in value] if "label" in value[0] else labels
        texts = [v.get("text") for v in value]
    if not isinstance(texts, list) or not 2 <= len(texts) <= _MAX_CHOICES:
        raise RowError(
            f"{what!r} must hold between 2 and {_MAX_CHOICES} choices, got {shown(value)}"
        )
    if len(labels) < len(texts):
        raise RowError(f"{what!r} has {len(texts)} choices and {len(labels)} labels")
    found = {
        as_text(label, f"{what}.label"): as_text(text, f"{what}[{i}]")
        for i, (label, text) in enumerate(zip(labels, map(_plain, texts), strict=False))
    }
    if len(found) < len(texts):
        raise RowError(f"{what!r} has two choices with one label")
    return found


def _plain(choice: Any) -> Any:
    is_number = isinstance(choice, (int, float)) and not isinstance(choice, bool)
    return str(choice) if is_number else choice


def shown_choices(choices: Mapping[str, str]) -> str:
    r"""One line a choice, with its label unless it begins with it.

    Example:
        >>> shown_choices({"A": "red", "B": "blue"})
        'A. red\nB. blue'
    """
    own = all(re.match(rf"\(?{re.escape(label)}[).:]", text) for label, text in choices.items())
    return "\n".join(text if own else f"{label}. {text}" for label, text in choices.items())


def label_of(answer: Any, choices: Mapping[str, str], what: str) -> str:
    """The label of the right choice, from its label, its position (from 0) or its text.

    Raises:
        RowError: it is none of the choices.
    """
    labels = list(choices)
    if isinstance(answer, float) and answer.is_integer():
        answer = int(answer)  # an index column with a gap
    if isinstance(answer, int) and not isinstance(answer, bool) and 0 <= answer < len(labels):
        return labels[answer]
    if isinstance(answer, str):
        bare = answer.strip()
        if bare in choices:
            return bare
        said = [label for label, text in choices.items() if text.strip() == bare]
        if len(said) == 1:
            return said[0]
    raise RowError(
        f"{what!r} is none of the choices {', '.join(labels)}, nor the position or text of one, got {shown(answer)}"
    )
