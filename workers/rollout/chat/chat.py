"""The chat seam: a model's own template and tokenizer, as text and as token ids.

What the policy sampled is never tokenised again: a conversation goes on from its exact ids, and only what comes
between two policy turns (template pieces and observations) is made from text.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Sequence
from itertools import pairwise

from policies.base.records import Message
from workers.rollout.chat.chat_settings import ChatSettings


class ChatFormat(ABC):
    """Chat template and tokenizer of the model that an engine serves."""

    terminators: frozenset[int]
    """Token ids with which the model ends a turn."""
    settings: ChatSettings = ChatSettings()
    """What the run says to the template."""
    spoken: frozenset[int] = frozenset()
    """Control tokens that `decode` shows, because they are part of what the policy says: tags of calls and thoughts."""
    controls: tuple[str, ...] = ()
    """Texts that `encode` turns into control tokens."""

    @property
    def closers(self) -> frozenset[int]:
        """Token ids that the template writes to close a policy turn, whoever speaks next."""
        return self.terminators

    def configured(self, settings: ChatSettings) -> ChatFormat:
        """The same format under the settings of a run; itself where it has no template to be told."""
        return self

    @abstractmethod
    def text(
        self,
        messages: Sequence[Message],
        tools: Sequence[dict[str, object]] = (),
        *,
        generation_prompt: bool,
    ) -> str:
        """The conversation in the template's words, with the opening of a policy turn at its end if asked for.

        Raises:
            RolloutError: the template refuses these messages.
        """

    @abstractmethod
    def encode(self, text: str, *, special: bool = True) -> tuple[int, ...]:
        """Token ids of `text`; nothing is added. Without `special`, no text becomes a control token."""

    @abstractmethod
    def decode(self, token_ids: Sequence[int]) -> str:
        """Text of `token_ids`, control tokens left out but for those that are `spoken`."""

    def spelled(self, token_ids: Sequence[int]) -> str:
        """Text of `token_ids` with control tokens as they are spelled."""
        return self.decode(token_ids)

    def hides_marks(self, token_ids: Sequence[int]) -> bool:
        """Tell whether `decode` leaves out a control token among them that marks a thought or an answer."""
        return False

    def encode_pieces(self, pieces: Sequence[str]) -> tuple[int, ...]:
        """Token ids of the pieces one after the other; no control token spans two of them.

        Raises:
            RolloutError: the tokenizer made a control token of text that does not spell one.
        """
        return tuple(i for piece in pieces for i in self.encode(piece))


def cuts(text: str, controls: Sequence[str]) -> list[int]:
    """Positions at which `text` must be cut so that no control token is spelled in it, nor across its ends.

    One cut behind the first character of every occurrence, overlapping ones too. At the ends, where a template puts
    text of its own beside it, what could be one half of a control token is kept apart.

    Example:
        >>> cuts("a<eot>b<eot>", ["<eot>"])
        [2, 8]
        >>> cuts("1 <eo", ["<eot>"])
        [5]
    """
    if not controls:
        return []
    any_of = "|".join(re.escape(control) for control in controls)
    found = {match.start() + 1 for match in re.finditer(f"(?=(?:{any_of}))", text)}
    end = len(text.rstrip())
    start = len(text) - len(text.lstrip())
    for control in controls:
        for size in range(1, len(control)):
            if text.endswith(control[:size], 0, end):
                found.add(end)
            if text.startswith(control[-size:], start):
                found.add(start)
    return sorted(found)


def split_at(text: str, positions: Sequence[int]) -> list[str]:
    """The parts of `text` between `positions`."""
    edges = [0, *positions, len(text)]
    return [text[a:b] for a, b in pairwise(edges)]
