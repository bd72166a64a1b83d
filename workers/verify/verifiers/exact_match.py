"""Score 1 when the completion, or a part of it, equals the prompt's answer after normalisation."""

from __future__ import annotations

import string
import unicodedata
from typing import Literal

from policies.errors import VerificationError, explain
from policies.records import Prompt, Trajectory, Verdict
from workers.verify.answers import require_answer, scalar_text
from workers.verify.verifier import Verifier

_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)


class ExactMatch(Verifier):
    """Compares texts. An answer that is a list of texts is met by any of them."""

    class Config(Verifier.Config):
        """Settings of `exact_match`."""

        where: Literal["whole", "last_line", "contains"] = "whole"
        """What must equal the answer: the whole completion, its last line that is not blank, or any part of it."""
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
        found = self._normalise(self._part(trajectory.completion))
        if self.config.where == "contains":
            correct = any(option in found for option in accepted)
        else:
            correct = found in accepted
        return self.scored(trajectory, float(correct), f"read {found[:80]!r}")

    def _accepted(self, prompt: Prompt) -> set[str]:
        """The texts that are right. An answer of which nothing is left would make every attempt wrong."""
        source = self.config.source
        answer = require_answer(prompt, source)
        options = answer if isinstance(answer, list) else [answer]
        accepted = {self._normalise(scalar_text(option, prompt, source)) for option in options}
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
