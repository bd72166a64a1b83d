"""Messages between the driver and the process of the plug-ins: one JSON object per line."""

from __future__ import annotations

from enum import StrEnum

from pydantic import Field, JsonValue

from policies.base.records import Record


class Question(StrEnum):
    """The questions that can be asked."""

    CONFIG = "config"
    """Check a config, and describe the plug-ins in it."""
    JUDGING = "judging"
    """Ask a verifier about prompts, before anything is judged."""
    PROMPTS = "prompts"
    """Load a prompt source."""
    MORE_PROMPTS = "more_prompts"
    """The next prompts that were loaded."""
    REFERENCE = "reference"
    """The reference of a round."""
    DECIDE = "decide"
    """Whether a candidate is kept."""
    MEASURE_AGAIN = "measure_again"
    """What an acceptance rule wants measured once more."""
    BACKEND = "backend"
    """Whether a judge backend can answer."""
    LOSS = "loss"
    """One microbatch of a loss."""
    MEMBER = "member"
    """An installed component, for `pawl components`."""
    SCHEMA = "schema"
    """Its settings, for `pawl schema`."""


class Asked(Record):
    """One question. Example: `Asked(id=1, what="config", body={"tree": {"rounds": 2}})`."""

    id: int
    what: Question
    body: dict[str, JsonValue]


class Answered(Record):
    """An answer, or a line that comes before it while a plug-in is imported.

    Example: `Answered(id=1, loading="./mine.py:score")`.
    """

    id: int
    loading: str = ""
    """The plug-in whose import begins now."""
    loaded: bool = False
    """That import has ended, well or not."""
    failed: str = ""
    """Why there is no answer."""
    kind: str = ""
    """Class of ours of what was raised; empty when it was the plug-in that raised."""
    body: dict[str, JsonValue] = Field(default_factory=dict)
