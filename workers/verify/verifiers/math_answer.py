"""Score 1 when the completion's final mathematical answer equals the prompt's, by math-verify and sympy.

Numbers, units, lists, choices and words are compared here; only expressions reach sympy, in a process of their own,
because an answer such as 10^(10^10) would occupy it for ever. An answer that cannot be computed is wrong.
"""

from __future__ import annotations

import re
from decimal import Decimal

from pydantic import Field

from policies.base.bounds import MAX_CHARACTERS, MAX_SECONDS
from policies.base.errors import VerificationError, explain
from policies.base.records import Prompt, Trajectory, Verdict
from workers.verify.answer_verifier import AnswerVerifier
from workers.verify.ground_truth import answer_text
from workers.verify.mathematics.comparison import Comparison
from workers.verify.mathematics.extraction import candidate, kind_of
from workers.verify.mathematics.notation import tidy
from workers.verify.mathematics.symbolic import SymbolicComparison, is_too_large

_MAX_WORDS = 8


class MathAnswer(AnswerVerifier):
    """Reads the last box, what is announced as the answer, a formula, or the last number, and compares it by its value.

    Numbers are equal when their values are; units may be left out, but not differ; lists without brackets in any order.
    Letters of choices and words are compared as such.
    """

    class Config(AnswerVerifier.Config):
        """Settings of `math_answer`."""

        timeout_seconds: float = Field(default=60.0, gt=0, le=MAX_SECONDS)
        """Longest time for one trajectory; leaves room to start sympy again after an answer that was too large."""
        step_seconds: int = Field(default=3, gt=0, le=MAX_SECONDS)
        """Most processor time of one comparison in sympy, in whole seconds; an answer that takes more is wrong."""
        decimal_places: int = Field(default=6, ge=0, le=100)
        """Decimals may differ from the answer by 10^-`decimal_places`, times the answer where that is below 1. Whole
        numbers and fractions must be equal."""
        last_characters: int = Field(default=8000, gt=0, le=MAX_CHARACTERS)
        """How much of the end of a completion is read."""

    config: Config

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self._symbolic = SymbolicComparison(
            decimal_places=config.decimal_places,
            cpu_seconds=config.step_seconds,
            wall_seconds=config.timeout_seconds / 3,
        )
        self._comparison = Comparison(self._symbolic.same, decimal_places=config.decimal_places)

    def prepare(self) -> None:
        """Start the process that imports sympy before the first trajectory is timed."""
        self._symbolic.start()

    def check_prompt(self, prompt: Prompt) -> None:
        self._gold(prompt)

    def verify(self, prompt: Prompt, trajectory: Trajectory) -> Verdict:
        """Return 1.0 or 0.0; a completion without an answer that can be read is a 0."""
        gold = self._gold(prompt)
        answer = self.answer(trajectory)
        if answer.missing:
            return self.unanswered(trajectory, answer)
        kind = kind_of(gold)
        found = candidate(answer.text[-self.config.last_characters :], kind)
        if not found:
            return self.scored(trajectory, 0.0, "no answer found")
        if kind == "choice":
            correct = found.strip("() ").upper() == gold.strip("() ")
        else:
            correct = self._comparison.same(gold, found)
        return self.scored(trajectory, float(correct), f"read {found[:80]!r}")

    def _gold(self, prompt: Prompt) -> str:
        """The ground truth as answers are brought to; raises where nothing could be compared with it."""
        answer = prompt.answer
        written = answer_text(prompt, self.config.source)
        if isinstance(answer, float):
            written = (
                f"{Decimal(str(answer)).normalize():f}" if abs(answer) < 1e300 else str(answer)
            )
        boxed = re.fullmatch(r"\s*\$*\\boxed\{(.*)\}\$*\s*", written, re.DOTALL)
        gold = tidy(boxed.group(1) if boxed else written)
        if problem := _problem(gold):
            raise VerificationError(
                explain(
                    f"the answer of prompt {prompt.id!r} cannot be read as mathematics: {problem}",
                    value=answer,
                    where="the answer column of the prompt source (columns.answer)",
                    fix="write a number, a list or LaTeX; for other texts use {type: exact_match, where: contains}",
                )
            )
        return gold


def _problem(gold: str) -> str:
    """Tell why nothing can be compared with `gold`; empty when something can."""
    if not re.search(r"[0-9A-Za-z\u0080-\U0010ffff]", gold.replace("\\", " ")):
        return "nothing is left of it without punctuation"
    if gold.count("{") != gold.count("}"):
        return "its braces do not match"
    if re.search(r"(?:\\|[-+*/^_=])$", gold):
        return "it ends in the middle"
    if kind_of(gold) == "words" and len(gold.split()) > _MAX_WORDS:
        return f"it has more than {_MAX_WORDS} words"
    if kind_of(gold) == "mathematics" and is_too_large(gold):
        return "it is too large to be computed"
    return ""
