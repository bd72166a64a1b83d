"""The prompt source seam: where prompts come from, and what a prompt id may look like."""

from __future__ import annotations

import hashlib
import json
import re
from typing import Any, ClassVar

from policies.base.component import Component, Family
from policies.base.records import Json, Message, Prompt

# Ids stand in file names, metric tables and trajectory ids, so they hold nothing that means something there.
_SAFE_ID = re.compile(r"[A-Za-z0-9_.:-]{1,96}")


class PromptSource(Component):
    """A set of prompts: finite, in a fixed order, with ids that are unique and stay the same between runs."""

    class Config(Component.Config):
        """Settings that every prompt source has: none."""

    is_heavy: ClassVar[bool] = False
    """Loading needs the network or a large package: `pawl validate` leaves it to `pawl plan`."""

    def __init__(self, config: Config) -> None:
        self.config = config

    def load(self) -> list[Prompt]:
        """Return all prompts, the same ones each time.

        Raises:
            InputError: the data cannot be used as given; the message says where.
        """
        raise NotImplementedError

    def notes(self) -> tuple[str, ...]:
        """Tell how the data were read, in words, once they are loaded; what was not used is named."""
        return ()


PROMPT_SOURCES = Family("prompt source", package="orchestrator.prompts.sources", base=PromptSource)


def is_safe_id(text: str) -> bool:
    """Tell whether `text` can be a prompt id as it is: letters, digits and `_ - . :`, at most 96."""
    return _SAFE_ID.fullmatch(text) is not None and text not in (".", "..")


def digest_of(*content: Json | list[Any]) -> str:
    """16 hex digits from JSON content, equal on every machine.

    Example:
        >>> digest_of("a", 1) == digest_of("a", 1)
        True
    """
    text = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def chat(user: str, system: str | None = None) -> tuple[Message, ...]:
    """A one-question chat, behind a system message if there is one."""
    first = (Message(role="system", content=system),) if system else ()
    return (*first, Message(role="user", content=user))
