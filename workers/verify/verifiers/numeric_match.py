"""Score 1 when the last (or first) number in the completion equals the number of the prompt's answer."""

from __future__ import annotations

import re
from decimal import MAX_EMAX, MIN_EMIN, Context, Decimal
from typing import Literal

from pydantic import Field

from policies.errors import VerificationError, explain
from policies.records import Prompt, Trajectory, Verdict
from workers.verify.answers import require_answer, scalar_text
from workers.verify.verifier import Verifier

Which = Literal["last", "first"]

# A sign counts only where it cannot be an operator: "7-8" holds 7 and 8, "= -8" holds -8.
_NUMBER = re.compile(
    r"(?:(?<![\w.)\]}])(?P<sign>[-+\u2212]))?[$\u20ac\u00a3]?"
    r"(?P<digits>(?<!\d)\d{1,3}(?:,\d{3})+(?!\d)(?:\.\d+)?|\d+(?:\.\d+)?|(?<![\d.])\.\d+)"
    r"(?P<exponent>[eE][-+]?\d{1,9}(?!\w))?"
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


class NumericMatch(Verifier):
    """Compares numbers as decimals, exactly unless a tolerance is set. A completion without a number is a 0."""

    class Config(Verifier.Config):
        """Settings of `numeric_match`."""

        which: Which = "last"
        """Which number of the completion is its answer."""
        absolute_tolerance: float = Field(default=0.0, ge=0)
        """Largest difference that still counts as equal."""
        relative_tolerance: float = Field(default=0.0, ge=0)
        """Largest difference that still counts as equal, as a share of the answer's size."""

    config: Config

    def check_prompt(self, prompt: Prompt) -> None:
        self._answer(prompt)

    def verify(self, prompt: Prompt, trajectory: Trajectory) -> Verdict:
        """Return 1.0 or 0.0."""
        answer = self._answer(prompt)
        found = find_number(trajectory.completion, which=self.config.which)
        if found is None:
            return self.scored(trajectory, 0.0, "no number in the completion")
        return self.scored(trajectory, float(self._equal(found, answer)), f"read {str(found)[:40]}")

    def _answer(self, prompt: Prompt) -> Decimal:
        source = self.config.source
        answer = require_answer(prompt, source)
        number = None
        if not isinstance(answer, bool):
            number = find_number(scalar_text(answer, prompt, source))
        if number is None:
            raise VerificationError(
                explain(
                    f"verifier {source!r} finds no finite number in the answer of prompt {prompt.id!r}",
                    value=answer,
                    where="the answer column of the prompt source (columns.answer)",
                    fix="give a number, or text that ends in one",
                )
            )
        return number

    def _equal(self, found: Decimal, answer: Decimal) -> bool:
        if found == answer:
            return True
        size = _CONTEXT.multiply(Decimal(str(self.config.relative_tolerance)), answer.copy_abs())
        allowed = max(Decimal(str(self.config.absolute_tolerance)), size)
        return _CONTEXT.subtract(found, answer).copy_abs() <= allowed
