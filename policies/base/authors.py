"""The author of an attempt's policy turns."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

from pydantic import BeforeValidator, Field


class Author(StrEnum):
    """The writer of an attempt's policy turns; only the policy's own log-probs are ever taken from a record."""

    POLICY = "policy"
    """The version that the attempt names sampled them, after the tokens that stand before them."""
    LOG = "log"
    """They were recorded elsewhere: a demonstration, an answer of a data set."""
    ROLE = "role"
    """A role of the config gave them: another model, asked by its name."""
    EDIT = "edit"
    """They are a change of another attempt, or were sampled after a prompt that the attempt does not show."""


AuthorField = Annotated[
    Author,
    BeforeValidator(lambda found: found or Author.POLICY),  # a file without the column
    Field(exclude_if=lambda found: found is Author.POLICY),
]
"""The author in a record, written only where it is not the policy: digests of other records stay what they were."""
