"""Score 1 when the last (or first) number in the completion equals the number of the prompt's answer."""

from __future__ import annotations

import re
import unicodedata
from decimal import MAX_EMAX, MIN_EMIN, Context, Decimal
from typing import Literal

from pydantic import Field

from policies.base.attempt_answer import explicit_answer
from policies.base.bounds import MAX_SCORE
from policies.base.errors import VerificationError, explain
from policies.base.records import Prompt, Trajectory, Verdict
from workers.verify.answer_verifier import AnswerVerifier
from workers.verify.ground_truth import require_answer, scalar_text

Which = Literal["last", "first"]

# A sign counts only where it cannot be an operator: "7-8" holds 7 and 8, "= -8" holds -8.
_NUMBER = re.compile(
    r"(?:(?<![\w.)\]}])(?P<sign>[-+\u2212]))?[$\u20ac\u00a3]?"
    r"(?P<digits>(?<!\d)\d{1,3}(?:,\d{3})+(?!\d)(?:\.\d+)?|\d+(?:\.\d+)?|(?<![\d.])\.\d+)"
    r"(?P<exponent>[eE][-+]?\d{1,9}(?!\w))?"
)

_THIN = "\u2009"
_SEPARATORS = f"[ \u00a0\u202f{_THIN}']"
_GROUPED = re.compile(rf"(?<![\w.,{_THIN}])\d{{1,3}}(?:{_SEPARATORS}\d{{3}})+(?![\w]|[.,]\d{{3}})")
_ANNOUNCED = re.compile(
    r"[^\d=:]*(?::|\b(?:is|are|was|equals|makes|gives|gets?|so|thus|hence|therefore|answer|result|total|sum)\b)[\s,]*",
    re.IGNORECASE,
)
_UNIT_POWER = re.compile(r"(?<=[A-Za-z}])\s?\^\s?(?:\{-?\d\}|-?\d)(?!\d)")
_BOXED = re.compile(r"\\boxed\s*\{([^{}]*)\}")
_GOLD = re.compile(
    r"(?P<number>[-+\u2212]?\s*[$\u20ac\u00a3]?\s*[-+\u2212]?(?:\d{1,3}(?:,\d{3})+(?:\.\d+)?|\d+(?:\.\d*)?|\.\d+)"
    r"(?:[eE][-+]?\d{1,9})?)\s*\.?"
)

# Wide enough that no written number overflows; traps are off because a result is only compared.
_CONTEXT = Context(prec=60, Emax=MAX_EMAX, Emin=MIN_EMIN, traps=[])


def find_number(text: str, *, which: Which = "last") -> Decimal | None:
    """Return the last or first number written in `text`, or None.

    Example:
        >>> find_number("7 times 8 is 1,056.50.")
        Decimal('1056.50')
    """
    found: re.Match[str] | None = None
    for match in _NUMBER.finditer(text):
        found = match
        if which == "first":
            break
    if found is None:
        return None
    sign = "-" if found["sign"] in ("-", "\u2212") else ""
    return Decimal(sign + found["digits"].replace(",", "") + (found["exponent"] or ""))


def readable(text: str) -> str:
    """`text` with commas between thousands, digits in ASCII, and without the powers of units."""
    text = _UNIT_POWER.sub("", "".join(_ascii_digit(c) for c in text))
    text = (
        text.replace("{,}", ",").replace("\\$", "$").replace("{\\,}", _THIN).replace("\\,", _THIN)
    )
    return _GROUPED.sub(lambda found: re.sub(_SEPARATORS, ",", found.group()), text)


def only_number(text: str) -> Decimal | None:
    """The number that a ground truth is; None where it is something else or holds more than that.

    Text may stand before it that ends in `####`, `=`, a colon or a word such as `is`; a currency sign and a full stop
    beside it say nothing.

    Example:
        >>> only_number("5 + 3 = 8 #### 8"), only_number("1/2"), only_number("July 20")
        (Decimal('8'), None, None)
    """
    text = readable(text).strip()
    text = text.rpartition("####")[2] if "####" in text else _before_equals(text)
    boxed = _BOXED.fullmatch(text.strip().strip("$"))
    text = (boxed.group(1) if boxed else text).strip()
    found = _GOLD.fullmatch(text[:-1] if text.startswith("$") and text.endswith("$") else text)
    return None if found is None else find_number(re.sub(r"\s", "", found["number"]))


def _before_equals(text: str) -> str:
    """Return what stands behind the last `=` or the words that announce the answer; all of it where neither does."""
    announced = _ANNOUNCED.match(text)
    if announced is not None:
        return text[announced.end() :]
    _, sign, after = text.rpartition("=")
    return after if sign else text


def _ascii_digit(character: str) -> str:
    value = None if character.isascii() else unicodedata.decimal(character, None)
    return character if value is None else str(value)


class NumericMatch(AnswerVerifier):
    r"""Compares numbers as decimals, exactly unless a tolerance is set. An answer without a number is a 0.

    A number in a `\boxed{...}` of the answer counts before those in its words. The prompt's answer must be one number,
    or text that ends in one behind `####`, `=`, a colon or `is`; fractions, dates, times, powers, lists and numbers
    with units are refused before a run.
    """

    class Config(AnswerVerifier.Config):
        """Settings of `numeric_match`."""

        which: Which = "last"
        """Which number of the answer counts."""
        absolute_tolerance: float = Field(default=0.0, ge=0, le=MAX_SCORE)
        """Largest difference that still counts as equal."""
        relative_tolerance: float = Field(default=0.0, ge=0, le=MAX_SCORE)
        """Largest difference that still counts as equal, as a share of the answer's size."""

    config: Config

    def check_prompt(self, prompt: Prompt) -> None:
        self._answer(prompt)

    def verify(self, prompt: Prompt, trajectory: Trajectory) -> Verdict:
        """Return 1.0 or 0.0."""
        gold = self._answer(prompt)
        answer = self.answer(trajectory)
        if answer.missing:
            return self.unanswered(trajectory, answer)
        boxed = explicit_answer(answer.text) or answer.text
        found = find_number(readable(boxed), which=self.config.which)
        if found is None:
            return self.scored(trajectory, 0.0, "no number in the answer")
        return self.scored(trajectory, float(self._equal(found, gold)), f"read {str(found)[:40]}")

    def _answer(self, prompt: Prompt) -> Decimal:
        source = self.config.source
        answer = require_answer(prompt, source)
        number = None
        if not isinstance(answer, bool):
            number = only_number(scalar_text(answer, prompt, source))
        if number is None:
            raise VerificationError(
                explain(
                    f"verifier {source!r} compares one number, and the answer of prompt {prompt.id!r} is not one",
                    value=answer,
                    where="the answer column of the prompt source (columns.answer)",
                    fix="give a number, or text that ends in one after ####; use {type: math_answer} for fractions, "
                    "powers and units, {type: exact_match, where: contains} for dates, times and words",
                )
            )
        return number

    def _equal(self, found: Decimal, answer: Decimal) -> bool:
        if found == answer:
            return True
        size = _CONTEXT.multiply(Decimal(str(self.config.relative_tolerance)), answer.copy_abs())
        allowed = max(Decimal(str(self.config.absolute_tolerance)), size)
        return _CONTEXT.subtract(found, answer).copy_abs() <= allowed
