"""Steps of a policy turn: its lines or sentences as spans of the exact tokens that were sampled.

The text is only looked at to find the places; nothing is tokenised again. A step ends where a token ends, so the
spans of a turn follow each other without a gap and cover it, terminator included.
"""

from __future__ import annotations

import itertools
import re
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from policies.base.records import Step, Trajectory
from workers.rollout.chat.chat import ChatFormat

StepKind = Literal["turn", "line", "sentence"]
"""What a step is: a policy turn, or the lines or sentences in it."""

MAX_PENDING_TOKENS = 4
"""A character of UTF-8 has at most four bytes, and a token at least one: what is no character by then is none."""
MAX_LOOK_BACK = 40
"""Characters before a dot that are looked at: longer than any abbreviation."""
_UNREADABLE = "\ufffd"
_LINE_END = re.compile(r"\n\s*")
# The look-behind and the possessive repeats keep this linear on a thousand dots in a row.
_SENTENCE_END = re.compile(
    r"(?<![.!?])[.!?]++[\"'\u201d\u2019)\]*_`]*+\s++|[\u3002\uff01\uff1f]\s*|\n\s*"
)
_ABBREVIATION = re.compile(
    r"(?:^|[\s(])(?:e\.g|i\.e|cf|vs|approx|eq|fig|mr|mrs|ms|dr|prof)\.\s*$", re.IGNORECASE
)
_NUMBERED_ITEM = re.compile(r"\s*\d+\.\s*")


@dataclass(frozen=True)
class _Boundary:
    """Places where a step may be cut off, as positions in the text."""

    earliest: int
    """After what ends the step."""
    best: int
    """Indentation belongs to the next line, other white space to what is before it."""
    latest: int
    """Before the next word."""


def with_steps(trajectory: Trajectory, chat: ChatFormat, kind: StepKind) -> Trajectory:
    """The trajectory with its policy turns split into steps.

    A line ends with its line breaks; blank lines belong to the line before them. A sentence ends with `.`, `!` or `?`
    before white space, or with a line; the dot of a numbered item or of a common abbreviation is no end. A turn that
    cannot be cut is one step; a turn without tokens has none.

    Args:
        trajectory: what was sampled; returned as it is for the kind `turn`.
        chat: of the engine that sampled it.
        kind: what a step is.
    """
    if kind == "turn":
        return trajectory
    turns = tuple(
        turn.model_copy(update={"steps": steps_of(turn.token_ids, chat, kind)})
        if turn.role == "policy" and turn.token_ids
        else turn
        for turn in trajectory.turns
    )
    return trajectory.model_copy(update={"turns": turns})


def steps_of(
    token_ids: Sequence[int], chat: ChatFormat, kind: Literal["line", "sentence"]
) -> tuple[Step, ...]:
    """Steps of one policy turn, in order; their texts joined are the text of the turn. Linear in its length."""
    pieces = list(decoded_pieces(token_ids, chat))
    text = "".join(piece for _, piece in pieces)
    edges = [(0, 0), *_cuts(pieces, text, kind), (len(token_ids), len(text))]
    return tuple(
        Step(start=start, end=end, text=text[first:last])
        for (start, first), (end, last) in itertools.pairwise(edges)
    )


def decoded_pieces(token_ids: Sequence[int], chat: ChatFormat) -> Iterator[tuple[int, str]]:
    """(one past the last token, text) of the shortest runs of tokens that are whole characters, in order.

    A token may hold a part of a character (byte-level BPE), and its text may depend on the token before it
    (SentencePiece drops the space that opens a text), so each run is decoded together with the run before it.
    """
    before, read, known = 0, 0, ""
    for end in range(1, len(token_ids) + 1):
        window = chat.decode(token_ids[before:end])
        is_pending = end - read < MAX_PENDING_TOKENS and end < len(token_ids)
        if window.endswith(_UNREADABLE) and is_pending:
            continue
        alone = chat.decode(token_ids[read:end])
        yield end, window[len(known) :] if window.startswith(known) else alone
        before, read, known = read, end, alone


def _cuts(
    pieces: Sequence[tuple[int, str]], text: str, kind: Literal["line", "sentence"]
) -> list[tuple[int, int]]:
    """(token, character) of every cut, in order; there are words between any two of them.

    A piece that reaches over a boundary is not cut: it goes with the step that it has words of, else with the next.
    """
    ends = list(itertools.accumulate(len(piece) for _, piece in pieces))
    cuts: list[tuple[int, int]] = []
    last = len(text.rstrip())
    for boundary in _boundaries(text, kind):
        index = bisect_right(ends, boundary.best) - 1
        if index < 0 or ends[index] < boundary.earliest:
            words = pieces[index + 1][1][: boundary.earliest - (ends[index] if index >= 0 else 0)]
            if ends[index + 1] <= boundary.latest or words.strip():
                index += 1
        if index < 0:
            continue
        cut = (pieces[index][0], ends[index])
        previous = cuts[-1][1] if cuts else 0
        if cut[1] < last and text[previous : cut[1]].strip():
            cuts.append(cut)
    return cuts


def _boundaries(text: str, kind: Literal["line", "sentence"]) -> Iterator[_Boundary]:
    """Yield where the text may be cut; white space at either end of it closes nothing."""
    pattern = _LINE_END if kind == "line" else _SENTENCE_END
    begun, last = len(text) - len(text.lstrip()), len(text.rstrip())
    line = 0
    for found in pattern.finditer(text):
        start, end = found.span()
        if begun <= start and end < last and not (kind == "sentence" and _goes_on(text, line, end)):
            mark = len(found.group().rstrip())
            line_break = text.rfind("\n", start, end) + 1
            yield _Boundary(start + (mark or 1), line_break or end, end)
        line = max(line, text.rfind("\n", start, end) + 1)


def _goes_on(text: str, line: int, end: int) -> bool:
    """Tell whether the dot before `end`, in the line that begins at `line`, ends no sentence."""
    tail = text[max(line, end - MAX_LOOK_BACK) : end]
    if _ABBREVIATION.search(tail):
        return True
    return end - line <= MAX_LOOK_BACK and _NUMBERED_ITEM.fullmatch(tail) is not None
