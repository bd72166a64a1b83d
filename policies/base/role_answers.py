"""The answer of a role to a prompt, as it was given: in words, before it stands on the policy's tokens."""

from __future__ import annotations

from policies.base.records import Record


class RoleAnswer(Record):
    """One answer of one role. Example: `RoleAnswer(id="7x8.0", prompt_id="7x8", index=0, role="teacher", text="56")`.

    Exactly one of `text` and `error` is there.
    """

    id: str
    prompt_id: str
    index: int
    """Which of the role's answers to the prompt."""
    role: str
    """Its name in the config."""
    answered_by: str = ""
    """Identity of what answered: a model's name or digest."""
    text: str | None = None
    error: str | None = None
    seconds: float = 0.0
