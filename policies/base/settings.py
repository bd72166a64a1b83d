"""The base of every model of settings: frozen, strict, and watchful of values that must be kept out of texts."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict

from policies.base.redaction import names_a_secret, remember


class Settings(BaseModel):
    """Base of every config model: frozen, unknown keys refused, field docstrings kept for the schema."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False
    )

    def model_post_init(self, context: Any, /) -> None:
        """Whatever process builds these settings knows from then on which of their values to keep out of texts."""
        for name in type(self).model_fields:
            value = getattr(self, name)
            if isinstance(value, str) and names_a_secret(name):
                remember(value)
