"""Score how far a completion keeps to a format: patterns, tags and lengths; it knows nothing of right or wrong."""

from __future__ import annotations

import re
from typing import Literal, Self

from pydantic import Field, field_validator, model_validator

from policies.base.attempt_answer import is_cut, written_by
from policies.base.bounds import MAX_CHARACTERS, MAX_TOKENS
from policies.base.records import Prompt, Trajectory, Verdict
from workers.verify.verifier import Verifier


class FormatRules(Verifier):
    """Checks every rule that is set on all that was written, thoughts included.

    The mark of a thought that the chat template wrote before the policy's turn counts as written. An empty completion,
    and an attempt that a limit of tokens or turns cut short, keep none of the rules.
    """

    class Config(Verifier.Config):
        """Settings of `format_rules`; at least one rule must be set."""

        must_match: tuple[str, ...] = ()
        """Regular expressions that must each be found; one rule per pattern."""
        must_not_match: tuple[str, ...] = ()
        """Regular expressions that must not be found; one rule per pattern."""
        required_tags: tuple[str, ...] = ()
        """Names such as `think`: `<think>` and `</think>` must each stand exactly once, in this order; an opening
        at the end of the prompt, where many chat templates write it, counts."""
        max_characters: int | None = Field(default=None, gt=0, le=MAX_CHARACTERS)
        """Longest completion, in characters."""
        max_tokens: int | None = Field(default=None, gt=0, le=MAX_TOKENS)
        """Most tokens that the policy wrote in the whole trajectory."""
        score: Literal["all", "share"] = "all"
        """1 only when every rule is kept, or the share of rules that are kept."""

        @field_validator("must_match", "must_not_match")
        @classmethod
        def _compile(cls, patterns: tuple[str, ...]) -> tuple[str, ...]:
            for pattern in patterns:
                try:
                    re.compile(pattern)
                except re.error as error:
                    raise ValueError(f"{pattern!r} is not a regular expression: {error}") from error
            return patterns

        @model_validator(mode="after")
        def _has_a_rule(self) -> Self:
            rules = (self.must_match, self.must_not_match, self.required_tags)
            if not any(rules) and self.max_characters is None and self.max_tokens is None:
                raise ValueError(
                    "no rule is set: give must_match, must_not_match, required_tags, max_characters or max_tokens"
                )
            return self

    config: Config

    def verify(self, prompt: Prompt, trajectory: Trajectory) -> Verdict:
        """Return the share of rules that are kept, or whether all are."""
        if not trajectory.completion.strip():
            return self.scored(trajectory, 0.0, "empty completion")
        if self.config.level == "trajectory" and is_cut(trajectory):
            return self.scored(trajectory, 0.0, "a limit cut the attempt: it kept to no format")
        kept = self._kept(trajectory)
        broken = [rule for rule, is_kept in kept.items() if not is_kept]
        share = 1 - len(broken) / len(kept)
        score = share if self.config.score == "share" else float(not broken)
        return self.scored(
            trajectory, score, f"broken: {'; '.join(broken)}"[:300] if broken else "all rules kept"
        )

    def _kept(self, trajectory: Trajectory) -> dict[str, bool]:
        config, text = self.config, trajectory.completion
        if config.level == "trajectory":
            text = written_by(trajectory)
        rules = {f"must match {p}": re.search(p, text) is not None for p in config.must_match}
        rules |= {f"must not match {p}": re.search(p, text) is None for p in config.must_not_match}
        rules |= {f"tag <{tag}>": _has_tag(text, tag) for tag in config.required_tags}
        if config.max_characters is not None:
            rules[f"at most {config.max_characters} characters"] = (
                len(trajectory.completion) <= config.max_characters
            )
        if config.max_tokens is not None:
            rules[f"at most {config.max_tokens} tokens"] = (
                trajectory.num_policy_tokens <= config.max_tokens
            )
        return rules


def _has_tag(text: str, tag: str) -> bool:
    opening, closing = f"<{tag}>", f"</{tag}>"
    once = text.count(opening) == 1 and text.count(closing) == 1
    return once and text.index(opening) < text.index(closing)
