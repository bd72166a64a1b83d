"""Numbers with units, as answers write them, and when two of them are equal: without sympy, whatever their size."""

from __future__ import annotations

import re
from dataclasses import dataclass
from decimal import MAX_EMAX, MIN_EMIN, Context, Decimal
from fractions import Fraction

MAX_DIGITS = 4000
"""Longest number that is computed with; longer ones are compared as they are written."""
MAX_EXPONENT = 4000

_CONTEXT = Context(prec=60, Emax=MAX_EMAX, Emin=MIN_EMIN, traps=[])
_NUMBER = re.compile(
    r"(?P<sign>[-+]?)\s*"
    r"(?P<digits>\d{1,3}(?:,\d{3})+(?:\.\d+)?|\d{1,3}(?: \d{3})+(?:\.\d+)?|\d+(?:\.\d*)?|\.\d+)"
    r"(?:[eE](?P<power>[-+]?\d{1,18})(?![\w.]))?"
    r"(?:\s*(?:\\times|\\cdot|\*|x)\s*10\s*\^\s*(?:\{\s*(?P<ten>[-+]?\s*\d{1,18})\s*\}|(?P<bare>[-+]?\d{1,18})))?"
)
_FRACTION = re.compile(
    r"(?P<sign>[-+]?)\s*(?:(?P<whole>\d+)(?:\s+(?=\d)|\s*(?=\\)))?"
    r"(?:\\frac\s*\{\s*(?P<a>[-+]?\d+)\s*\}\s*\{\s*(?P<b>[-+]?\d+)\s*\}|(?P<c>\d+)\s*/\s*(?P<d>\d+))"
)
_POWER = re.compile(
    r"(?P<sign>[-+]?)\s*(?P<base>\d{1,9})\s*\^\s*(?:\{\s*(?P<power>[-+]?\d{1,6})\s*\}|(?P<bare>\d))"
)
_RAISED = r"(?:\s*\^\s*(?:\{\s*-?\d\s*\}|-?\d))?"
_LETTERS = r"[A-Za-z\u00b5\u03bc\u2126\u03a9]"
_UNIT = re.compile(
    rf"\s*(?P<percent>%|percent\b|per cent\b)|(?P<unit>(?:\s*{_LETTERS}{{2,}}|\s+[mgsLlNJWVAKCFh](?![A-Za-z])){_RAISED}"
    rf"(?:(?:\s*/\s*|\s*\\cdot\s*|[ .*-])(?!and\b|or\b){_LETTERS}+{_RAISED}){{0,4}})?"
)
_NO_UNITS = re.compile(
    r"\s*(?:sin|cos|tan|cot|sec|csc|log|ln|exp|sqrt|pi|mod|and|or|to|times|plus|minus|over|is|are)\b",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Quantity:
    """A number and its unit. Example: `Quantity(Fraction(5), exact=True, unit="cm")`."""

    value: Fraction | Decimal
    exact: bool
    """Written without a decimal point: to be matched exactly by another such number."""
    unit: str = ""
    percent: bool = False


def read_quantity(text: str) -> Quantity | None:
    """The quantity that all of `text` is; None when it is something else.

    Args:
        text: in the form that `tidy` gives.

    Example:
        >>> read_quantity("1,250.50 kg").unit
        'kg'
    """
    for pattern, value_of in (
        (_FRACTION, _of_fraction),
        (_POWER, _of_power),
        (_NUMBER, _of_number),
    ):
        found = pattern.match(text)
        value = None if found is None else value_of(found)
        if found is None or value is None:
            continue
        rest = text[found.end() :]
        unit = _UNIT.fullmatch(rest)
        if unit is None or (unit["unit"] and _NO_UNITS.match(rest)):
            continue
        exact = pattern is not _NUMBER or "." not in found["digits"]
        return Quantity(value, exact, _unit(unit["unit"] or ""), percent=bool(unit["percent"]))
    return None


def last_quantity(text: str) -> str:
    """The last number in prose, with its sign, fraction and unit as far as they belong to it; empty without one.

    Example:
        >>> last_quantity("so the area is -9 m^2 in all")
        '-9'
    """
    number = (
        r"(?:\d{1,3}(?:,\d{3})+(?:\.\d+)?|\d+(?:\.\d+)?|(?<![\d.])\.\d+)(?:[eE][-+]?\d{1,9}(?!\w))?"
    )
    pattern = re.compile(
        rf"(?:(?<![\w.)\]}}^_])[-+])?(?:\\frac\{{[-+]?\d+\}}\{{\d+\}}|(?<![\w^_.])(?<!\^\{{){number}"
        rf"(?:\s*/\s*\d+(?!\d))?(?:\s*\\times\s*10\s*\^\s*(?:\{{[-+]?\d+\}}|[-+]?\d+))?)(?:\s*%)?"
    )
    found = [m.group() for m in pattern.finditer(re.sub(r"(?<=\d)\.(?!\d)", " ", text))]
    return found[-1].strip() if found else ""


def expression(text: str) -> str:
    """A number in the notation that sympy reads exactly, `1e16` as its digits; other texts as they are."""
    found = read_quantity(text)
    if found is None or found.unit or found.percent or isinstance(found.value, Decimal):
        return text
    if found.value.denominator == 1:
        return str(found.value.numerator)
    return (
        rf"\frac{{{found.value.numerator}}}{{{found.value.denominator}}}" if found.exact else text
    )


def equal(gold: Quantity, found: Quantity, decimal_places: int) -> bool:
    """Tell whether two quantities are the same: exactly, or within 10^-`decimal_places` of the gold's size, at most of
    1.

    Whole numbers and fractions are matched exactly. A unit may be left out, but not be another. 50% is 50 or 0.5.
    """
    if gold.unit and found.unit and not _same_unit(gold.unit, found.unit):
        return False
    if gold.percent == found.percent:
        return _close(gold, found, found.value, decimal_places)
    hundredth, other = (gold, found) if gold.percent else (found, gold)
    if isinstance(hundredth.value, Decimal) or isinstance(other.value, Decimal):
        return False
    return any(
        _close(Quantity(value, exact=False), other, other.value, decimal_places)
        for value in (hundredth.value, hundredth.value / 100)
    )


def _close(gold: Quantity, found: Quantity, value: Fraction | Decimal, decimal_places: int) -> bool:
    if isinstance(gold.value, Decimal) or isinstance(value, Decimal):
        return (
            isinstance(gold.value, Decimal) and isinstance(value, Decimal) and gold.value == value
        )
    if gold.value == value:
        return True
    whole = gold.value.denominator == value.denominator == 1
    if whole or (gold.exact and found.exact):
        return False
    limit = min(Fraction(1), abs(gold.value)) / Fraction(10**decimal_places)
    return abs(gold.value - value) <= limit


def _of_number(found: re.Match[str]) -> Fraction | Decimal | None:
    digits = re.sub("[, ]", "", found["digits"])
    power = int(found["power"] or 0) + int(re.sub(r"\s", "", found["ten"] or found["bare"] or "0"))
    if len(digits) > MAX_DIGITS or abs(power) > MAX_EXPONENT:
        number = Decimal(f"{found['sign']}{digits}E{power}" if abs(power) < 10**17 else "NaN")
        return number.normalize(_CONTEXT) if len(digits) < 60 else number
    return Fraction(f"{found['sign']}{digits.rstrip('.') or '0'}") * Fraction(10) ** power


def _of_power(found: re.Match[str]) -> Fraction | None:
    base, power = int(found["base"]), int(found["power"] or found["bare"])
    if len(found["base"]) * abs(power) > MAX_DIGITS or (base == 0 and power <= 0):
        return None
    return Fraction(base) ** power * (-1 if found["sign"] == "-" else 1)


def _of_fraction(found: re.Match[str]) -> Fraction | None:
    parts = [found["whole"] or "0", found["a"] or found["c"], found["b"] or found["d"]]
    if any(len(part) > MAX_DIGITS for part in parts) or int(parts[2]) == 0:
        return None
    value = int(parts[0]) + Fraction(int(parts[1]), int(parts[2]))
    return -value if found["sign"] == "-" else value


def _unit(text: str) -> str:
    return re.sub(r"[\s{}().]|\\cdot|\*", "", text)


def _same_unit(one: str, two: str) -> bool:
    if one == two:
        return True
    one, two = (
        re.sub(r"(?:es|s)$", "", unit.casefold()) if len(unit) > 2 else unit for unit in (one, two)
    )
    return one == two
