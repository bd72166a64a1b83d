"""Score 1 when the completion, or a part of it, equals the prompt's answer after normalisation."""

from __future__ import annotations

import math
import re
import string
import unicodedata
from decimal import Decimal
from typing import Literal

from policies.base.errors import VerificationError, explain
from policies.base.records import Json, Prompt, Trajectory, Verdict
from workers.verify.answer_verifier import AnswerVerifier
from workers.verify.ground_truth import require_answer, scalar_text

_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)


class ExactMatch(AnswerVerifier):
    """Compares texts. A prompt's answer that is a list of texts is met by any of them.

    An answer that is a number is met by each way to write it in decimals: 56.0 by `56` and `56.0`.
    """

    class Config(AnswerVerifier.Config):
        """Settings of `exact_match`."""

        where: Literal["whole", "last_line", "contains"] = "whole"
        """What must equal the prompt's answer: all that the attempt answers, its last line that is not blank, or any
        part of it. A part begins and ends where a word or number does: 5 is not in 15, nor in 5.2."""
        ignore_case: bool = False
        """Compare without regard to upper and lower case."""
        ignore_punctuation: bool = False
        """Compare without ASCII punctuation (a full stop at the end no longer matters)."""
        collapse_whitespace: bool = True
        """Treat every run of blanks and line ends as one blank; the ends are stripped in any case."""
        unicode_compatibility: bool = True
        """Compare in Unicode NFKC, where full-width digits and ligatures equal their plain forms."""

    config: Config

    def check_prompt(self, prompt: Prompt) -> None:
        self._accepted(prompt)

    def verify(self, prompt: Prompt, trajectory: Trajectory) -> Verdict:
        """Return 1.0 or 0.0."""
        accepted = self._accepted(prompt)
        answer = self.answer(trajectory)
        if answer.missing:
            return self.unanswered(trajectory, answer)
        found = self._normalise(self._part(answer.text))
        if self.config.where == "contains":
            correct = any(_stands_in(option, found) for option in accepted)
        else:
            correct = found in accepted
        return self.scored(trajectory, float(correct), f"read {found[:80]!r}")

    def _accepted(self, prompt: Prompt) -> set[str]:
        """The texts that are right. An answer of which nothing is left would make every attempt wrong."""
        source = self.config.source
        answer = require_answer(prompt, source)
        options = answer if isinstance(answer, list) else [answer]
        accepted = {
            self._normalise(written)
            for option in options
            for written in _ways_to_write(option, scalar_text(option, prompt, source))
        }
        accepted.discard("")
        if not accepted:
            raise VerificationError(
                explain(
                    f"verifier {source!r} finds nothing to compare with in the answer of prompt {prompt.id!r}",
                    value=answer,
                    where="the answer column of the prompt source (columns.answer)",
                    fix="give an answer that is not blank once it is normalised",
                )
            )
        return accepted

    def _part(self, completion: str) -> str:
        if self.config.where == "last_line":
            return next((line for line in reversed(completion.splitlines()) if line.strip()), "")
        return completion

    def _normalise(self, text: str) -> str:
        if self.config.unicode_compatibility:
            text = unicodedata.normalize("NFKC", text)
        if self.config.ignore_case:
            text = text.casefold()
        if self.config.ignore_punctuation:
            text = text.translate(_NO_PUNCTUATION)
        return " ".join(text.split()) if self.config.collapse_whitespace else text.strip()


def _ways_to_write(answer: Json, text: str) -> tuple[str, ...]:
    """`text`, and for a number in the file also its plain decimals: a column with a gap turns 56 into 56.0."""
    if not isinstance(answer, float) or not math.isfinite(answer) or abs(answer) >= 1e300:
        return (text,)
    plain = f"{Decimal(repr(answer)):f}"
    return (text, plain, plain.removesuffix(".0"))


def _stands_in(option: str, text: str) -> bool:
    """Tell whether `option` is a part of `text` that no letter, digit or decimal continues on either side."""
    start = text.find(option)
    while start >= 0:
        end = start + len(option)
        if not _continues(option, text[max(0, start - 2) : start], text[end : end + 2]):
            return True
        start = text.find(option, start + 1)
    return False


def _continues(option: str, before: str, after: str) -> bool:
    first, last = option[0], option[-1]
    if first.isascii() and first.isalnum():
        number = first.isdigit() and (re.search(r"\d[.,]$|^-$|(?<!\w)-$", before) is not None)
        if number or (before[-1:].isascii() and before[-1:].isalnum()):
            return True
    if last.isascii() and last.isalnum():
        number = last.isdigit() and re.match(r"[.,]\d", after) is not None
        return number or (after[:1].isascii() and after[:1].isalnum())
    return False
