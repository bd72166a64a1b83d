"""Shares of a round's attempts that others than the serving policy give: earlier policies, and a role."""

from __future__ import annotations

from typing import Any, Self

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer, model_validator

from policies.base.bounds import MAX_COUNT, MAX_ROUNDS
from policies.base.component import Settings


class MixtureSettings(Settings):
    """Samples that an earlier policy, or a role, gives to every prompt of a round."""

    rounds_ago: int = Field(default=1, ge=1, le=MAX_ROUNDS)
    """Which policy: the one that served so many rounds before; before there is one, the first of the run."""
    role: str | None = None
    """Instead of a policy, the role of `roles` that answers: its answers are written on the policy's tokens, and the
    trainer scores them where a loss wants log-probs."""
    samples: int = Field(ge=1, le=MAX_COUNT)
    """Attempts at each prompt by that policy or role."""

    @model_validator(mode="after")
    def _one_of_both(self) -> Self:
        if self.role is not None and "rounds_ago" in self.model_fields_set:
            raise ValueError(
                f"rounds_ago and role are both given ({self.rounds_ago} and {self.role!r}): one sampler a line. Fix: "
                "leave one out, or write two lines"
            )
        return self

    @model_serializer(mode="wrap")
    def _as_older_runs_wrote_it(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        # Without a role, files of older runs are made from the same settings; with one, no policy is meant.
        values: dict[str, Any] = dump(self)
        values.pop("role" if self.role is None else "rounds_ago")
        return values
