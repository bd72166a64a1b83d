"""Score 1 when the completion's final mathematical answer equals the prompt's, by math-verify.

math-verify bounds its own work with `signal.alarm`, which works in the main thread of a process only.
Verifiers run in the main thread of their own process, so its timeouts are kept, below ours.
"""

from __future__ import annotations

import logging
import math
from typing import Any

from pydantic import Field

from policies.errors import VerificationError, explain
from policies.records import Prompt, Trajectory, Verdict
from workers.verify.answers import answer_text
from workers.verify.verifier import Verifier


class MathAnswer(Verifier):
    """Parses LaTeX and plain expressions and compares them symbolically."""

    class Config(Verifier.Config):
        """Settings of `math_answer`."""

        step_seconds: int = Field(default=3, gt=0)
        """Longest time for each of math-verify's own steps (parse, compare); whole seconds, below `timeout_seconds`."""
        decimal_places: int = Field(default=6, ge=0)
        """Decimal places to which numbers are rounded before they are compared."""
        last_characters: int = Field(default=8000, gt=0)
        """How much of the end of a completion is parsed; parsing takes longer than linear time."""

    config: Config

    def prepare(self) -> None:
        """Import math-verify (and sympy) before the first trajectory is timed."""
        import math_verify

        assert math_verify.parse
        logging.getLogger("math_verify").setLevel(logging.ERROR)

    def check_prompt(self, prompt: Prompt) -> None:
        answer_text(prompt, self.config.source)

    def verify(self, prompt: Prompt, trajectory: Trajectory) -> Verdict:
        """Return 1.0 or 0.0; a completion without an answer that can be read is a 0."""
        gold = self._gold(answer_text(prompt, self.config.source), prompt)
        text = trajectory.completion[-self.config.last_characters :]
        found = self._parse(text) if text.strip() else []
        if not found:
            return self.scored(trajectory, 0.0, "no answer found")
        correct = self._equal(gold, found)
        return self.scored(trajectory, float(correct), f"read {_shown(found)}")

    def _gold(self, answer: str, prompt: Prompt) -> list[Any]:
        # An answer column holds bare LaTeX more often than not; delimiters make it parse as such.
        delimited = answer if "$" in answer or "\\boxed" in answer else f"${answer}$"
        for text in (delimited, answer):
            parsed = self._parse(text)
            if any(not isinstance(option, str) for option in parsed):
                return parsed
        raise VerificationError(
            explain(
                f"the answer of prompt {prompt.id!r} cannot be read as mathematics",
                value=answer,
                where="the answer column of the prompt source (columns.answer)",
                fix="write a number or LaTeX, or use exact_match",
            )
        )

    def _parse(self, text: str) -> list[Any]:
        from math_verify import parse

        parsed: list[Any] = parse(text, parsing_timeout=self._step_seconds())
        return parsed

    def _equal(self, gold: list[Any], found: list[Any]) -> bool:
        from math_verify import verify
        from math_verify.errors import TimeoutException

        options = {
            "float_rounding": self.config.decimal_places,
            "timeout_seconds": self._step_seconds(),
        }
        try:
            return bool(verify(gold, found, raise_on_error=True, **options))
        except TimeoutException as error:  # a BaseException: no boundary would catch it
            raise VerificationError(
                explain(
                    "comparing the answers took too long",
                    value=_shown(found),
                    where="verifiers[...].step_seconds",
                    fix="raise it together with timeout_seconds; unreadable answers cost little",
                )
            ) from error
        except (
            Exception
        ):  # the two are of kinds that cannot be compared; the other readings still count
            return bool(verify(gold, found, raise_on_error=False, **options))

    def _step_seconds(self) -> int:
        return max(1, min(self.config.step_seconds, math.ceil(self.config.timeout_seconds / 3)))


def _shown(found: list[Any]) -> str:
    # The text that was read, not the expression: printing an expression may compute it.
    return repr(next((option for option in found if isinstance(option, str)), "?"))[:80]
