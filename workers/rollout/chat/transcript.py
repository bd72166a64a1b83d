"""One conversation as exact token ids: what was sampled stays as it was, what lies between is made from the template.

The ids between two policy turns are found by rendering the conversation with a stand-in for the last policy turn: what
the template writes after the stand-in, up to the opening of the next policy turn, is the observation. Tool output can
never become a control token there, whatever it says. What the template writes *before* the stand-in must be what the
policy has really read: a template that rewrites earlier turns is found out.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Literal

from policies.base.errors import RolloutError
from policies.base.records import Message
from workers.rollout.chat.chat import ChatFormat, cuts, split_at

RewrittenHistory = Literal["auto", "refuse", "keep"]
"""What to do where a template shows earlier turns otherwise than they were sampled: `auto` and `keep` go on with what
was sampled; with `auto` the reason is told."""
_SPACE = re.compile(r"\s+")


class RewrittenHistoryError(RolloutError):
    """The chat template shows earlier turns otherwise than the policy wrote or read them."""


class Transcript:
    """Token ids and messages of one conversation, growing by policy turns and observations in turn."""

    def __init__(
        self,
        chat: ChatFormat,
        messages: Sequence[Message],
        tools: Sequence[dict[str, object]] = (),
        *,
        rewritten_history: RewrittenHistory = "auto",
    ) -> None:
        """Open a conversation.

        Args:
            chat: template and tokenizer.
            messages: what stands before the first policy turn.
            tools: JSON schemas for the template.
            rewritten_history: with `keep` and `auto`, go on with the exact ids whatever the template would show.

        Raises:
            RolloutError: the template refuses the messages.
        """
        self.chat = chat
        self.messages = list(messages)
        self.tools = tuple(tools)
        self.prompt_token_ids, self._shown = open_prompt(chat, messages, self.tools)
        self.token_ids = list(self.prompt_token_ids)
        """Everything so far: the prompt of the next policy turn. [T]"""
        self.rewritten: str | None = None
        """How the template first showed an earlier turn otherwise than the policy wrote or read it."""
        self._refuses = rewritten_history == "refuse"
        self._ended_with: int | None = None

    def said(self, token_ids: Sequence[int], text: str) -> None:
        """Append a policy turn: the ids as they were sampled, and their text without control tokens."""
        self.token_ids.extend(token_ids)
        self.messages.append(Message(role="assistant", content=text))
        last = token_ids[-1] if token_ids else None
        self._ended_with = last if last in self.chat.terminators else None

    def between(self, observation: Sequence[Message]) -> tuple[int, ...]:
        """Ids from the end of the last policy turn to the beginning of the next one; appends nothing. [O]

        What the template writes to close the policy's turn is left out when the policy ended it itself, and so is the
        opening of the next message where that is what the policy ended with.

        Raises:
            RewrittenHistoryError: the template rewrites earlier turns (only with `refuse`).
            RolloutError: the template refuses the messages, or does not show the last policy turn at all.
        """
        return self._render(observation)[0]

    def observed(self, observation: Sequence[Message]) -> tuple[int, ...]:
        """Append what `between` gives and return it."""
        ids, shown = self._render(observation)
        self._shown = shown
        self.messages.extend(observation)
        self.token_ids.extend(ids)
        return ids

    def _render(self, observation: Sequence[Message]) -> tuple[tuple[int, ...], str]:
        said = self.messages[-1]
        everything = [m.content for m in (*self.messages, *observation)]
        stand_in = _absent("pawl-turn", everything)
        cut = _absent_character(everything)
        controls = self.chat.controls
        safe = [
            m.model_copy(
                update={"content": cut.join(split_at(m.content, cuts(m.content, controls)))}
            )
            for m in observation
        ]
        shown = self.chat.text(
            [*self.messages[:-1], Message(role="assistant", content=stand_in), *safe],
            self.tools,
            generation_prompt=True,
        )
        before, found, after = shown.partition(stand_in)
        if not found:
            raise RewrittenHistoryError("the chat template does not show the policy's last turn")
        if _SPACE.sub("", before) != _SPACE.sub("", self._shown):
            difference = _difference(self._shown, before)
            if self._refuses:
                raise RewrittenHistoryError(
                    f"the chat template rewrites earlier turns: the policy read {difference}"
                )
            self.rewritten = self.rewritten or f"the policy read {difference}"
        ids = self.chat.encode_pieces(after.split(cut))
        if self._ended_with is not None:
            ids = self._without_closing(ids, self._ended_with)
        # What comes next is compared with what was really said, not with what the template showed.
        return ids, self._shown + said.content + after.replace(cut, "")

    def _without_closing(self, ids: tuple[int, ...], said: int) -> tuple[int, ...]:
        """`ids` behind what ends the policy's turn, if nothing but space stands before it.

        That is what closes turns in this template, or the very token that the policy ended with. Another
        end-of-sequence token is the opening of the next message (GLM 4 has those in its list), and stays.
        """
        closing = {*self.chat.closers, said}
        at = next((n for n, i in enumerate(ids) if i in closing), None)
        if at is None or self.chat.decode(ids[:at]).strip():
            return ids
        if any(i in self.chat.terminators for i in ids[:at]):
            return ids
        return ids[at + 1 :]


def open_prompt(
    chat: ChatFormat, messages: Sequence[Message], tools: Sequence[dict[str, object]]
) -> tuple[tuple[int, ...], str]:
    """Ids and text of the messages before the first policy turn, its opening included."""
    text = chat.text(messages, tools, generation_prompt=True)
    return chat.encode(text), text


def _absent(stem: str, texts: Sequence[str]) -> str:
    """A word that occurs in none of `texts`."""
    number = 0
    while any(f"{stem}-{number}." in text for text in texts):
        number += 1
    return f"{stem}-{number}."


def _absent_character(texts: Sequence[str]) -> str:
    """A character of the private use area that occurs in none of `texts`."""
    used = set().union(*texts)
    return next(c for c in map(chr, range(0xE000, 0xF900)) if c not in used)


def _difference(read: str, shown: str) -> str:
    """Both texts from a little before the place where they part, space aside."""
    ours = [n for n, character in enumerate(read) if not character.isspace()]
    theirs = [n for n, character in enumerate(shown) if not character.isspace()]
    size = min(len(ours), len(theirs))
    at = next((n for n in range(size) if read[ours[n]] != shown[theirs[n]]), size)
    a = max(0, ours[at] - 20) if at < len(ours) else len(read)
    b = max(0, theirs[at] - 20) if at < len(theirs) else len(shown)
    return f"{read[a : a + 60]!r}, it would now show {shown[b : b + 60]!r}"
