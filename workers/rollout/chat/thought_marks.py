"""Marks of thoughts that the text of a sampled turn lacks: of the chat template before it, and of control tokens."""

from __future__ import annotations

from collections.abc import Sequence

from policies.base.attempt_answer import left_open, without_thoughts
from policies.base.records import Trajectory, Turn
from workers.rollout.chat.chat import ChatFormat

TAIL_TOKENS = 64
"""How much of the end of a prompt is looked at: more than any template writes before a policy turn."""


def with_thought_marks(trajectory: Trajectory, chat: ChatFormat) -> Trajectory:
    """The trajectory with `opened_thought` and `marked_text` on its policy turns; itself where there are none."""
    turns = []
    before = trajectory.prompt_token_ids[-TAIL_TOKENS:]
    for turn in trajectory.turns:
        turns.append(_marked(turn, before, chat) if turn.role == "policy" else turn)
        before = (before + turn.token_ids)[-TAIL_TOKENS:]
    if all(one is other for one, other in zip(turns, trajectory.turns, strict=True)):
        return trajectory
    return trajectory.model_copy(update={"turns": tuple(turns)})


def marked_text(
    text: str, token_ids: Sequence[int], prompt_token_ids: Sequence[int], chat: ChatFormat
) -> str:
    """A sampled text with all marks of its thoughts, also the one that the template wrote before it.

    Args:
        text: of the turn.
        token_ids: of the turn. [T]
        prompt_token_ids: all that was read before it. [P]
        chat: of the engine that sampled it.
    """
    return opened_before(prompt_token_ids, chat) + (_spelled_marks(token_ids, chat) or text)


def spoken_text(
    text: str, token_ids: Sequence[int], prompt_token_ids: Sequence[int], chat: ChatFormat
) -> str:
    """Return what a policy turn says to others: `marked_text` without the thoughts, empty while a thought is open."""
    return without_thoughts(marked_text(text, token_ids, prompt_token_ids, chat)) or ""


def opened_before(prompt_token_ids: Sequence[int], chat: ChatFormat) -> str:
    """The mark of a thought that is open where the policy begins to write; empty when none is."""
    return left_open(chat.spelled(prompt_token_ids[-TAIL_TOKENS:]), chat.controls)


def _marked(turn: Turn, before: Sequence[int], chat: ChatFormat) -> Turn:
    found = {
        "opened_thought": opened_before(before, chat),
        "marked_text": _spelled_marks(turn.token_ids, chat),
    }
    return turn.model_copy(update=found) if any(found.values()) else turn


def _spelled_marks(token_ids: Sequence[int], chat: ChatFormat) -> str:
    """The turn with its control tokens spelled, its terminators apart, where some of them mark thoughts."""
    if not chat.hides_marks(token_ids):
        return ""
    end = len(token_ids)
    while (
        end
        and token_ids[end - 1] in chat.terminators
        and not chat.hides_marks([token_ids[end - 1]])
    ):
        end -= 1
    return chat.spelled(token_ids[:end])
