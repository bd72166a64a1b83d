"""Compares an answer with the truth: words as words, numbers by value, lists by their items, the rest by sympy."""

from __future__ import annotations

import re
from collections.abc import Callable

from workers.verify.mathematics.extraction import has_words
from workers.verify.mathematics.quantity import equal, expression, read_quantity

Symbolic = Callable[[str, str], bool]
"""Compares two expressions, the ground truth first; what cannot be computed is not equal."""

_MAX_ITEMS = 64

_BASE = re.compile(r"(?P<digits>[0-9A-Fa-f]+)\s*_\s*(?:\{\s*(?P<name>\w+)\s*\}|(?P<bare>\d+))")
_BASES = {
    "two": "2",
    "three": "3",
    "four": "4",
    "five": "5",
    "six": "6",
    "seven": "7",
    "eight": "8",
    "nine": "9",
}
_BASES |= {"ten": "10", "twelve": "12", "sixteen": "16"}
_TIME = re.compile(
    r"\d{1,4}(?::\d{2}){1,2}(?:\s*[ap]\.?m\.?)?|\d{4}-\d{1,2}-\d{1,2}|\d{1,2}/\d{1,2}/\d{2,4}", re.I
)
_CHAIN = re.compile(
    r"(?P<low>[^<>=\\a-zA-Z]+|-?\\infty)\s*(?P<one>\\le|<)\s*[a-zA-Z]\s*(?P<two>\\le|<)\s*(?P<high>.+)"
)
_BOUND = re.compile(r"[a-zA-Z]\s*(?P<sign>\\le|\\ge|<|>)\s*(?P<end>[^<>=]+)")
_ASSIGNED = re.compile(r"(?P<name>[a-zA-Z](?:_\{?\w+\}?)?(?:\([a-z]\))?)\s*=\s*(?P<value>[^=<>]+)")


class Comparison:
    """Compares answers in the form that `tidy` gives; `symbolic` decides about expressions."""

    def __init__(self, symbolic: Symbolic, *, decimal_places: int) -> None:
        self._symbolic = symbolic
        self._decimal_places = decimal_places

    def same(self, gold: str, found: str) -> bool:
        """Tell whether `found` says what `gold` says."""
        if not found:
            return False
        if _letters(gold) == _letters(found):
            return True
        if "\\begin" in gold or "\\cup" in gold or "\\begin" in found or "\\cup" in found:
            return self._symbolic(gold, found)
        interval = _as_interval(found) if _is_interval(gold) else None
        if interval is not None:
            return self.same(gold, interval)
        return self._by_items(gold, found)

    def _by_items(self, gold: str, found: str) -> bool:
        golds, ordered = _items(gold)
        founds, found_ordered = _items(found)
        if len(golds) == 1 and len(founds) == 1:
            return self._item(golds[0], founds[0])
        if len(golds) != len(founds) or len(golds) > _MAX_ITEMS:
            return False
        if ordered and found_ordered and ordered != found_ordered:
            return False
        if ordered:
            return all(self.same(one, two) for one, two in zip(golds, founds, strict=True))
        left = list(founds)
        for one in golds:
            match = next((n for n, two in enumerate(left) if self.same(one, two)), None)
            if match is None:
                return False
            del left[match]
        return True

    def _item(self, gold: str, found: str) -> bool:
        one, two = _value(gold, found)
        if _TIME.fullmatch(one):
            return _letters(one) == _letters(two)
        based = _same_in_base(one, two)
        if based is not None:
            return based
        number, other = read_quantity(one), read_quantity(two)
        if number is not None and other is not None:
            return equal(number, other, self._decimal_places)
        if number is None and (has_words(one) or has_words(two)):
            return _letters(one) == _letters(two)
        if other is None and has_words(two):
            return False
        return self._symbolic(_bare(expression(one)), _bare(expression(two)))


def _letters(text: str) -> str:
    """`text` for comparison as words: no case, no blanks beside punctuation, no outer brackets of a single item."""
    text = re.sub(r"\s+", " ", text).strip(" .,;:!?").casefold()
    text = re.sub(r"^(?:a|an|the)\s+(?=\w{2})", "", text)
    return re.sub(r"\s*([^\w\s])\s*", r"\1", text)


def _bare(text: str) -> str:
    """An expression without the percent sign, which sympy reads as a hundredth."""
    return text.replace("%", r"\%")


def _items(text: str) -> tuple[list[str], str]:
    """The items of a list and its brackets where order counts; a text without commas is one item."""
    text = text.strip()
    if read_quantity(text) is not None:
        return [text], ""
    inner, brackets = text, ""
    if text.startswith("\\{") and text.endswith("\\}"):
        inner = text[2:-2]
    elif text[:1] in ("(", "[") and text[-1:] in (")", "]") and _closes_at_end(text):
        inner, brackets = text[1:-1], text[0] + text[-1]
    parts = [part.strip() for part in _split(inner)]
    parts = [part for part in parts if part]
    if len(parts) <= 1:
        return [inner.strip() if inner is not text and brackets != "[]" else text], ""
    return parts, brackets


def _split(text: str) -> list[str]:
    """`text` at its commas, semicolons, `and` and `or` outside brackets."""
    parts, depth, start = [], 0, 0
    for token in re.finditer(r"\\.|[()\[\]{}]|,(?!\d{3}(?!\d))|, |;|\b(?:and|or)\b|\\cr", text):
        mark = token.group()
        if mark in "([{" or mark == "\\{":
            depth += 1
        elif mark in ")]}" or mark == "\\}":
            depth -= 1
        elif depth == 0 and not mark.startswith("\\"):
            parts.append(text[start : token.start()])
            start = token.end()
    return [*parts, text[start:]]


def _closes_at_end(text: str) -> bool:
    depth = 0
    for position, character in enumerate(text):
        depth += {"(": 1, "[": 1, ")": -1, "]": -1}.get(character, 0)
        if depth == 0:
            return position == len(text) - 1
    return False


def _value(gold: str, found: str) -> tuple[str, str]:
    """Both without `x =` where one of them leaves it out; the last side of a chain where the gold is no relation."""
    one, two = _ASSIGNED.fullmatch(gold), _ASSIGNED.fullmatch(found)
    if one and two:
        same = one["name"] == two["name"]
        return (one["value"].strip(), two["value"].strip()) if same else (gold, found)
    if one and "=" not in found:
        return one["value"].strip(), found
    if "=" not in gold and not re.search(r"[<>]|\\[lg]e\b", gold + found):
        return gold, re.split(r"=|\\approx", found)[-1].strip()
    return gold, found


def _same_in_base(gold: str, found: str) -> bool | None:
    """Tell whether two numbers with a base are one; None where neither has a base. One may leave it out."""
    one, two = _BASE.fullmatch(gold), _BASE.fullmatch(found)
    if one is None and two is None:
        return None
    plain = [
        re.sub(r"\s", "", m["digits"] if m else text).upper()
        for m, text in ((one, gold), (two, found))
    ]
    if one is None or two is None:
        return plain[0] == plain[1]
    return _base(one) == _base(two) and plain[0].lstrip("0") == plain[1].lstrip("0")


def _base(found: re.Match[str]) -> str:
    return found["bare"] or _BASES.get(found["name"].lower(), found["name"])


def _is_interval(gold: str) -> bool:
    return bool(re.fullmatch(r"[\[(][^,\[\]()]+,[^,\[\]()]+[\])]", gold))


def _as_interval(found: str) -> str | None:
    """The interval that an inequality states; None when it states none."""
    chain = _CHAIN.fullmatch(found)
    if chain is not None:
        low, high = (
            ("[" if chain["one"] == "\\le" else "("),
            ("]" if chain["two"] == "\\le" else ")"),
        )
        return f"{low}{chain['low'].strip()},{chain['high'].strip()}{high}"
    bound = _BOUND.fullmatch(found)
    if bound is None:
        return None
    end, sign = bound["end"].strip(), bound["sign"]
    if sign in ("<", "\\le"):
        return rf"(-\infty,{end}{']' if sign == chr(92) + 'le' else ')'}"
    return rf"{'[' if sign == chr(92) + 'ge' else '('}{end},\infty)"
