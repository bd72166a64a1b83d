"""Finds the answer in a completion: in its last box, behind words that announce it, in a formula, at its end."""

from __future__ import annotations

import re
from typing import Literal

from policies.base.attempt_answer import closing_brace
from workers.verify.mathematics.notation import plain_signs, tidy, unwrapped
from workers.verify.mathematics.quantity import last_quantity, read_quantity

Kind = Literal["mathematics", "choice", "words"]
"""What an answer is: something to compute with, the letter of a choice, or words."""

MAX_BOXES = 60
"""How many boxes are looked at, from the last one back: a policy may write thousands that it never closes."""
FUNCTIONS = frozenset(
    [
        "sin",
        "cos",
        "tan",
        "cot",
        "sec",
        "csc",
        "arcsin",
        "arccos",
        "arctan",
        "sinh",
        "cosh",
        "tanh",
        "log",
        "ln",
        "lg",
        "exp",
        "sqrt",
        "max",
        "min",
        "gcd",
        "lcm",
        "mod",
        "pi",
        "inf",
        "det",
    ]
)
_BOX = re.compile(r"\\(?:boxed|fbox)\s*\{")
_BETWEEN_BOXES = re.compile(
    r"(?:[\s$,;&\u3001]|\\\)|\\\(|and|or|\\text\{\s*(?:and|or)\s*\}|\\quad)*"
)
_ANNOUNCED = re.compile(
    r"(?:\banswers?\b(?:\s+to\s+[^.\n:]{1,60}?)?\s*(?:\*\*|__)?\s*"
    r"(?:(?:is|are|was|will be|equals|would be)\b|[:=]|\*\*:)+"
    r"|\u7b54\u6848(?:\u662f|\u4e3a|\u70ba|:)?|\u7b54(?:\u662f|:)|\brespuesta(?:\s+final)?(?:\s+es|:)"
    r"|\br\u00e9ponse(?:\s+finale)?(?:\s+est|:)|\bAntwort(?:\s+ist|\s+lautet|:)"
    r"|\u043e\u0442\u0432\u0435\u0442(?:\s*[-:])?|####)(?!\s*(?:not\b|n't))[\s:*_]*",
    re.IGNORECASE,
)
_DENIED = re.compile(
    r"\banswer\s+(?:is|was)\s*(?:not|n't|never)\b|\banswer\s+isn['\u2019]t\b|\bis\s+not\s+the\s+answer\b",
    re.IGNORECASE,
)
_MATHEMATICS = re.compile(
    r"\$\$(.{1,600}?)\$\$|(?<!\\)\$([^$\n]+?)(?<!\\)\$|\\\((.{1,600}?)\\\)|\\\[(.{1,600}?)\\\]",
    re.DOTALL,
)
_SENTENCE_END = re.compile(r"[.!?](?=\s|\*|$)|\n|;\s|\s(?:because|since|so|as|which|where)\b")
_WORD = re.compile(r"(?<![\\A-Za-z])[A-Za-z]{2,}")
_PRODUCT = re.compile(r"(?i)[b-df-hj-np-tv-z]{2,3}")
_LETTER = re.compile(r"\(?\s*([A-Z])\s*\)?")
_LETTER_FIRST = re.compile(
    r"(?:(?:option|choice|answer)\s+)?(?:\(([A-Z])\)|([A-Z])(?=[.):,]|\s*$))", re.IGNORECASE
)
_LETTER_ANYWHERE = re.compile(
    r"\(([A-Z])\)|\*\*\(?([A-Z])\)?[.)]?\*\*|(?<![\w'])([B-HJ-Z])(?![\w'])"
)


def kind_of(gold: str) -> Kind:
    """Return what a ground truth is, in the form that `tidy` gives."""
    if _LETTER.fullmatch(gold):
        return "choice"
    if read_quantity(gold) is not None or not has_words(gold):
        return "mathematics"
    return "words"


def has_words(text: str) -> bool:
    """Tell whether words stand in `text` that are no functions and no products of letters."""
    rest = re.sub(r"\\begin\s*\{\w+\*?\}(?:\s*\{[lcr|]+\})?|\\end\s*\{\w+\*?\}", " ", text)
    found = _WORD.findall(re.sub(r"\b(?:and|or)\b", " ", rest))
    return any(w.lower() not in FUNCTIONS and not _PRODUCT.fullmatch(w) for w in found)


def candidate(text: str, kind: Kind) -> str:
    """The part of a completion that answers, in the form that `tidy` gives; empty when nothing does."""
    boxed = _last_boxes(text)
    if boxed is not None:
        return _letter(tidy(boxed)) if kind == "choice" else tidy(boxed)
    text = _without_denials(text)
    announced = _announced(text)
    if kind == "choice":
        return _letter(tidy(announced)) if announced else _last_letter(text)
    if kind == "words":
        return tidy(announced or _last_line(text))
    if announced:
        found = _mathematics_in(announced, at_start=True)
        if found:
            return found
    return _mathematics_in(text, at_start=False)


def _without_denials(text: str) -> str:
    """`text` without the sentences that say what the answer is not."""
    kept, position = [], 0
    for found in _DENIED.finditer(text):
        start = max(
            position, text.rfind(". ", 0, found.start()) + 1, text.rfind("\n", 0, found.start())
        )
        end = re.compile(r"\.(?!\d)|\n|\Z").search(text, found.end())
        if found.start() >= position and end is not None:
            kept.append(text[position:start])
            position = end.end()
    return "".join([*kept, text[position:]]) if kept or position else text


def _last_boxes(text: str) -> str | None:
    """Content of the last box, with those right before it where only commas or `and` stand between."""
    spans: list[tuple[int, int, str]] = []
    for found in list(_BOX.finditer(text))[-MAX_BOXES:]:
        end = closing_brace(text, found.end() - 1)
        if end is None or (spans and found.start() < spans[-1][1]):
            continue
        content = text[found.end() : end]
        joined = spans and _BETWEEN_BOXES.fullmatch(text, spans[-1][1], found.start())
        if not joined:
            spans = []
        spans.append((found.start(), end + 1, content))
    return ", ".join(dict.fromkeys(content for *_, content in spans)) if spans else None


def _announced(text: str) -> str:
    """Return what follows the last words that announce an answer, up to the end of its sentence; empty without any."""
    plain = plain_signs(text)
    found = list(_ANNOUNCED.finditer(plain))
    while found:
        rest = plain[found.pop().end() :].lstrip("*_ \t\n")
        inside = _MATHEMATICS.match(rest)
        if inside is not None:
            return inside.group()
        end = next(
            (m for m in _SENTENCE_END.finditer(rest) if not _is_decimal_point(rest, m)), None
        )
        answer = rest[: end.start()] if end else rest
        if answer.strip(" .,:;*_"):
            return answer
    return ""


def _is_decimal_point(text: str, end: re.Match[str]) -> bool:
    return end.group() == "." and text[end.end() : end.end() + 1].isdigit()


def _mathematics_in(text: str, *, at_start: bool) -> str:
    """The whole text where it is an expression, else its first or last formula, else the number in its prose."""
    whole = "" if "\n" in text.strip() else tidy(text.strip().rstrip("!"))
    if whole and (read_quantity(whole) is not None or not has_words(whole)):
        return whole
    formulas = [next(g for g in m.groups() if g is not None) for m in _MATHEMATICS.finditer(text)]
    if formulas:
        return tidy(formulas[0 if at_start else -1])
    last = tidy(_last_line(text).rstrip("!"))
    for part in (whole, last):
        if part and read_quantity(part) is not None:
            return part
    if last and not has_words(last):
        return last
    prose = whole or tidy(text)
    if at_start:
        first = re.match(r"(?:about |exactly |just |simply |equal to )?(.*)", prose)
        opening = "" if first is None else first.group(1)
        number = last_quantity(opening.split(" ", 1)[0])
        return number or last_quantity(prose)
    return last_quantity(prose)


def _last_line(text: str) -> str:
    return next((line for line in reversed(text.strip().splitlines()) if line.strip()), "")


def _letter(answer: str) -> str:
    """The letter that an answer begins with; the answer itself when it begins with none."""
    found = _LETTER_FIRST.match(unwrapped(answer).strip())
    return answer if found is None else (found.group(1) or found.group(2)).upper()


def _last_letter(text: str) -> str:
    tidied = tidy(_last_line(text))
    if _LETTER_FIRST.match(tidied):
        return _letter(tidied)
    found = list(_LETTER_ANYWHERE.finditer(plain_signs(text)))
    return next((g for g in found[-1].groups() if g), "") if found else ""
