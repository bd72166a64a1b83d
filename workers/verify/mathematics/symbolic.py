"""Compare expressions with sympy in a process of their own, so that none can hang, fill or kill the verifier.

A ground truth that cannot be read there is an error of the data; an answer that cannot be read, or computed in time, is
wrong: which of the two it was is known because the ground truth is tried alone first.
"""

from __future__ import annotations

import re
import weakref

from policies.base.errors import VerificationError, explain
from workers.isolation.child_process import (
    ChildLostError,
    ChildProcess,
    ChildTimedOutError,
    line_of,
)
from workers.verify.mathematics.symbolic_child import Answered, Question

START_SECONDS = 40.0
"""Longest time for the process to import sympy."""
MAX_CHARACTERS = 2_000
"""Longest expression that is handed to sympy; the answer to no question is longer."""
_TOWER = re.compile(
    r"\d\)?\s*(?:\^|\*\*)\s*[{(]?\s*[-+]?\d+(?:\.\d+)?\s*[)}]?\s*(?:\^|\*\*)|(?:\^|\*\*)\s*[{(]?\s*[-+]?\d{5,}"
    r"|\d{5,}\s*\)?\s*!|!\s*\)?\s*!|\d{5,}\s*(?:\^|\*\*)\s*[{(]?\s*\d{4,}"
)
_MAX_DEPTH = 60


def is_too_large(expression: str) -> bool:
    """True if sympy should not even try: towers of powers, huge factorials, deep nesting, thousands of characters."""
    if len(expression) > MAX_CHARACTERS or _TOWER.search(expression):
        return True
    depth = deepest = 0
    for character in expression:
        depth += {"(": 1, "{": 1, "[": 1, ")": -1, "}": -1, "]": -1}.get(character, 0)
        deepest = max(deepest, depth)
    return deepest > _MAX_DEPTH


class SymbolicComparison:
    """The process, started when it is first needed and after each death."""

    def __init__(self, *, decimal_places: int, cpu_seconds: int, wall_seconds: float) -> None:
        """Start nothing yet.

        Args:
            decimal_places: how close decimals must be.
            cpu_seconds: most processor time of one comparison; an answer that needs more is wrong.
            wall_seconds: longest wait for one comparison; a machine that needs longer has failed, not the answer.
        """
        self._decimal_places = decimal_places
        self._cpu_seconds = cpu_seconds
        self._wall_seconds = wall_seconds
        self._child: ChildProcess | None = None
        self._known: dict[str, bool] = {}

    def start(self) -> None:
        """Import sympy there; raises VerificationError when the process does not start."""
        if self._child is not None:
            return
        child = ChildProcess("workers.verify.mathematics.symbolic_child")
        try:
            child.exchange(line_of(self._question("1", None)), Answered, START_SECONDS)
        except (ChildTimedOutError, ChildLostError) as error:
            raise VerificationError(
                child.exit_report(f"for symbolic comparison does not start: {error}")
            ) from error
        self._child = child
        self._end = weakref.finalize(self, child.kill)  # it does not outlive who started it

    def close(self) -> None:
        """Kill the process."""
        if self._child is not None:
            self._end()
            self._child = None

    def same(self, gold: str, found: str) -> bool:
        """Tell whether the expressions are equal; False also for an answer that sympy cannot read or compute in time.

        Raises:
            VerificationError: the ground truth itself cannot be read or computed in time.
        """
        if is_too_large(found):
            return False
        self._check(gold)
        try:
            return self._ask(gold, found)
        except ChildLostError:  # it used up its processor time, its memory or its stack
            return False

    def _check(self, gold: str) -> None:
        """Read the ground truth alone: what then fails is the answer's doing."""
        if gold not in self._known:
            try:
                self._known[gold] = not is_too_large(gold) and self._ask(gold, None)
            except ChildLostError:
                self._known[gold] = False
        if not self._known[gold]:
            raise VerificationError(
                explain(
                    "the ground truth cannot be computed as mathematics",
                    value=gold,
                    where="the answer column of the prompt source (columns.answer)",
                    fix="write a number or LaTeX, use exact_match, or raise verifiers[...].step_seconds",
                )
            )

    def _ask(self, gold: str, found: str | None) -> bool:
        self.start()
        assert self._child is not None
        line = line_of(self._question(gold, found))
        try:
            return self._child.exchange(line, Answered, self._wall_seconds).yes
        except ChildLostError:
            self.close()
            raise
        except ChildTimedOutError as error:
            self.close()
            raise VerificationError(
                explain(
                    "the machine had no time to compare an answer: its process got too little of the processor",
                    value=self._wall_seconds,
                    where="verifiers[...].timeout_seconds, a third of it",
                    fix="raise it, or run fewer workers on this machine",
                )
            ) from error

    def _question(self, gold: str, found: str | None) -> Question:
        return Question(
            gold=gold,
            found=found,
            decimal_places=self._decimal_places,
            cpu_seconds=self._cpu_seconds,
        )
