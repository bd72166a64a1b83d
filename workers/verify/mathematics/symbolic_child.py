"""The process that computes with sympy: `python -m workers.verify.mathematics.symbolic_child FD PARENT_PID`.

One JSON line in, one out, over the socket FD: whether two expressions are equal, or whether one can be read at all.
Whatever hangs or grows here is ended by limits on its processor time and memory.
"""

from __future__ import annotations

import logging
import math
import resource
from typing import Any

from policies.base.errors import PawlError, VerificationError, boundary
from policies.base.records import Record
from workers.isolation.child_process import begin_as_child, line_of

MAX_BYTES = 4 * 2**30
"""Address space of the process: an expression that needs more is not computed."""
PRECISION = 40
"""Decimal digits in which numbers are evaluated."""


class Question(Record):
    """Two expressions to compare. Example: `Question(gold="x+1", found="1+x", decimal_places=6, cpu_seconds=3)`."""

    gold: str
    found: str | None
    """None asks whether `gold` can be read."""
    decimal_places: int
    cpu_seconds: int


class Answered(Record):
    """The answer to a question."""

    yes: bool


def main() -> None:
    """Serve questions until the parent hangs up or dies."""
    connection = begin_as_child()
    resource.setrlimit(resource.RLIMIT_AS, (MAX_BYTES, MAX_BYTES))
    logging.getLogger("math_verify").setLevel(logging.CRITICAL)
    with connection, connection.makefile("rb") as lines:
        for line in lines:
            question = Question.model_validate_json(line)
            _limit_processor_time(question.cpu_seconds)
            try:
                with boundary(VerificationError, "it cannot be computed"):
                    yes = _answer(question)
            except PawlError:
                yes = False
            connection.sendall(line_of(Answered(yes=yes)))


def _limit_processor_time(seconds: int) -> None:
    """Let the kernel end this process, even inside one long multiplication, once it has computed for `seconds` more."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    soft = math.ceil(used.ru_utime + used.ru_stime) + seconds
    resource.setrlimit(resource.RLIMIT_CPU, (soft, resource.RLIM_INFINITY))


def _answer(question: Question) -> bool:
    gold = read(question.gold)
    if question.found is None:
        return bool(gold)
    found = read(question.found)
    if not gold or not found:
        return False
    numbers = [_number(gold[0]), _number(found[0])]
    if None not in numbers:
        return _close(numbers[0], numbers[1], question.decimal_places)
    from math_verify import verify

    return bool(verify(gold, found, float_rounding=question.decimal_places, timeout_seconds=None))


def read(text: str) -> list[Any]:
    """The readings of an expression; empty when it has none. Texts that sympy did not read are none."""
    from math_verify import ExprExtractionConfig, LatexExtractionConfig, parse

    for written in (f"${text}$", text):
        parsed = parse(
            written,
            [LatexExtractionConfig(), ExprExtractionConfig()],
            fallback_mode="no_fallback",
            parsing_timeout=None,
        )
        found = [option for option in parsed if not isinstance(option, str)]
        if found:
            return found
    return []


def _number(expression: Any) -> Any:
    """The expression when it is one real or complex number, else None."""
    from sympy import Expr

    if not isinstance(expression, Expr) or expression.free_symbols:
        return None
    return expression if expression.is_number and expression.is_finite is not False else None


def _close(gold: Any, found: Any, decimal_places: int) -> bool:
    """Equal exactly, or, unless both are rational and written as such, within a share of the gold's size."""
    from sympy import Float

    if gold == found:
        return True
    if gold.is_Rational and found.is_Rational and not (gold.has(Float) or found.has(Float)):
        return False
    difference = abs((gold - found).evalf(PRECISION))
    size = abs(gold.evalf(PRECISION))
    limit = min(1, size) / 10**decimal_places
    whole = gold.is_Integer and found.is_Integer
    return bool(difference == 0 or (not whole and difference <= limit))


if __name__ == "__main__":
    main()
