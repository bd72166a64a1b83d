"""The chat seam: a model's own template and tokenizer, as text and as token ids.

What the policy sampled is never tokenised again: a conversation goes on from its exact ids, and only what comes
between two policy turns (template pieces and observations) is made from text.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

from policies.records import Message


class ChatFormat(ABC):
    """Chat template and tokenizer of the model that an engine serves."""

    terminators: frozenset[int]
    """Token ids with which the model ends a turn."""

    @abstractmethod
    def text(
        self,
        messages: Sequence[Message],
        tools: Sequence[dict[str, object]] = (),
        *,
        generation_prompt: bool,
    ) -> str:
        """The conversation in the template's words, with the opening of a policy turn at its end if asked for."""

    @abstractmethod
    def encode(self, text: str, *, special: bool = True) -> tuple[int, ...]:
        """Token ids of `text`; nothing is added. Without `special`, no text becomes a control token."""

    @abstractmethod
    def decode(self, token_ids: Sequence[int]) -> str:
        """Text of `token_ids`, control tokens left out."""
