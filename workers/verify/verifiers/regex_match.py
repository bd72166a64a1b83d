"""Score 1 when a pattern is found in the completion; the pattern comes from the config or from the prompt.

Patterns can take exponential time on some completions. Nothing here guards against that: the process that
runs this verifier is killed at `timeout_seconds`, which is the only bound that always holds.
"""

from __future__ import annotations

import re
from typing import Literal

from pydantic import field_validator

from policies.base.errors import VerificationError, explain
from policies.base.records import Prompt, Trajectory, Verdict
from workers.verify.answer_verifier import AnswerVerifier
from workers.verify.ground_truth import answer_text


class RegexMatch(AnswerVerifier):
    """Searches a pattern. A group called `answer` must moreover hold the prompt's answer in its last match."""

    class Config(AnswerVerifier.Config):
        """Settings of `regex_match`."""

        pattern: str | None = None
        """Python regular expression; unset takes it from each prompt's metadata (see `metadata_key`)."""
        metadata_key: str = "pattern"
        """Key of a prompt's metadata that holds its pattern; read when `pattern` is unset."""
        mode: Literal["search", "fullmatch"] = "search"
        """Whether the pattern may be found anywhere or must cover the completion without its outer blanks."""
        ignore_case: bool = False
        """Match without regard to upper and lower case."""
        dot_matches_newline: bool = False
        """Let `.` match line ends."""

        @field_validator("pattern")
        @classmethod
        def _compiles(cls, pattern: str | None) -> str | None:
            if pattern is not None:
                try:
                    re.compile(pattern)
                except re.error as error:
                    raise ValueError(f"not a regular expression: {error}") from error
            return pattern

    config: Config

    def check_prompt(self, prompt: Prompt) -> None:
        if "answer" in self._pattern(prompt).groupindex:
            answer_text(prompt, self.config.source)

    def verify(self, prompt: Prompt, trajectory: Trajectory) -> Verdict:
        """Return 1.0 or 0.0."""
        pattern = self._pattern(prompt)
        answer = self.answer(trajectory)
        if answer.missing:
            return self.unanswered(trajectory, answer)
        text = answer.text
        if not text.strip():
            return self.scored(trajectory, 0.0, "empty answer")
        if self.config.mode == "fullmatch":
            whole = pattern.fullmatch(text.strip())
            matches = [whole] if whole else []
        else:
            matches = list(pattern.finditer(text))
        if not matches:
            return self.scored(trajectory, 0.0, "no match")
        last = matches[-1]
        if "answer" not in pattern.groupindex:
            return self.scored(trajectory, 1.0, f"matched {last[0][:80]!r}")
        found = (last["answer"] or "").strip()
        correct = found == answer_text(prompt, self.config.source).strip()
        return self.scored(trajectory, float(correct), f"read {found[:80]!r}")

    def _pattern(self, prompt: Prompt) -> re.Pattern[str]:
        pattern = self.config.pattern
        if pattern is None:
            value = prompt.metadata.get(self.config.metadata_key)
            if not isinstance(value, str):
                raise VerificationError(
                    explain(
                        f"prompt {prompt.id!r} carries no pattern for verifier {self.config.source!r}",
                        value=value,
                        where=f"verifiers[...].pattern, or metadata {self.config.metadata_key!r} of the prompt",
                        fix="set one of the two",
                    )
                )
            pattern = value
        flags = re.IGNORECASE if self.config.ignore_case else re.NOFLAG
        flags |= re.DOTALL if self.config.dot_matches_newline else re.NOFLAG
        try:
            return re.compile(pattern, flags)
        except re.error as error:
            raise VerificationError(
                explain(
                    f"the pattern of prompt {prompt.id!r} is not a regular expression: {error}",
                    value=pattern,
                    where=f"metadata {self.config.metadata_key!r} of the prompt",
                    fix="correct the pattern",
                )
            ) from error
