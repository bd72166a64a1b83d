"""A trajectory as text for people: who wrote what, what became of its tool calls, and how it ended.

One list of parts serves the terminal, the tables and the report. In plain text every line that a model or a tool
wrote is indented and every label is not, so that no text can pass for a label.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape
from typing import Literal

from policies.base.plain_text import clean_text
from policies.base.records import Ending, Span, StopReason, ToolCall, ToolCallStatus, Trajectory

_CUT = {StopReason.LENGTH: "cut at its token budget"}


@dataclass(frozen=True)
class Part:
    """One turn, or the ending. Example: `Part("observation", "observation", "Output: 56", marks=("python ok",))`."""

    author: Literal["policy", "observation", "end"]
    label: str
    text: str
    marks: tuple[str, ...] = ()
    is_bad: bool = False
    """A tool call in it did not end well, or the attempt as a whole failed."""

    @property
    def heading(self) -> str:
        """Label with its marks, e.g. `policy 2 (graded)`."""
        return f"{self.label} ({', '.join(self.marks)})" if self.marks else self.label


def is_conversation(trajectory: Trajectory) -> bool:
    """Tell whether more than one policy turn has to be told."""
    return (
        len(trajectory.turns) > 1
        or bool(trajectory.opening)
        or trajectory.outcome is not None
        or trajectory.ending in (Ending.ENVIRONMENT, Ending.TURN_LIMIT)
    )


def parts_of(trajectory: Trajectory) -> tuple[Part, ...]:
    """Return what the counterpart began with, the turns in order, policy turns numbered from 1, and the ending."""
    parts: list[Part] = []
    if trajectory.opening:
        parts.append(Part("observation", "opening", opening_text(trajectory)))
    num_policy_turns = 0
    for index, turn in enumerate(trajectory.turns):
        if turn.role == "policy":
            num_policy_turns += 1
            marks = [_CUT[turn.stop_reason]] if turn.stop_reason in _CUT else []
            marks += _graded_mark(trajectory, index)
            parts.append(Part("policy", f"policy {num_policy_turns}", turn.text, tuple(marks)))
        else:
            bad = any(call.status is not ToolCallStatus.OK for call in turn.calls)
            parts.append(
                Part("observation", "observation", turn.text, tuple(_calls(turn.calls)), bad)
            )
    return (*parts, Part("end", "ended", ending_text(trajectory), is_bad=bool(trajectory.error)))


def headings_of(trajectory: Trajectory) -> list[str]:
    """One heading for each of `Trajectory.turns`, in order."""
    return [p.heading for p in parts_of(trajectory)[bool(trajectory.opening) : -1]]


def opening_text(trajectory: Trajectory) -> str:
    """Return what the counterpart said before the first policy turn; empty where the policy was first."""
    return "\n".join(message.content for message in trajectory.opening)


def _graded_mark(trajectory: Trajectory, index: int) -> list[str]:
    """A mark on the turn that was graded, where it is not the last one or only a part of it."""
    graded = trajectory.graded
    if graded is None or graded.turn != index:
        return []
    whole = graded == Span(turn=index, start=0, end=len(trajectory.turns[index].token_ids))
    return ["graded" if whole else f"graded: tokens {graded.start} to {graded.end}"]


def _calls(calls: Iterable[ToolCall]) -> list[str]:
    return [f"{clean_text(call.tool)} {call.status.value}" for call in calls]


def calls_text(trajectory: Trajectory) -> str:
    """All tool calls by tool and status. Example: `python ok 2, python failed`."""
    counted = Counter(name for turn in trajectory.turns for name in _calls(turn.calls))
    return ", ".join(f"{name} {number}" if number > 1 else name for name, number in counted.items())


def ending_text(trajectory: Trajectory) -> str:
    """Tell why the attempt ended, and what the environment said. Example: `turn_limit, outcome 0.5`."""
    words = [trajectory.ending.value]
    if trajectory.outcome is not None:
        words.append(f"outcome {trajectory.outcome:g}")
    if trajectory.branch is not None:
        words.append(
            f"branched from {clean_text(trajectory.branch.parent)} at token {trajectory.branch.at_token}"
        )
    return ", ".join(words)


def told(trajectory: Trajectory) -> str:
    """All that was said after the prompt, without control characters; one turn alone is its text as it is."""
    if not is_conversation(trajectory):
        return clean_text("".join(turn.text for turn in trajectory.turns))
    lines: list[str] = []
    for part in parts_of(trajectory):
        if part.author == "end":
            lines.append(f"{part.label}: {part.text}")
        else:
            lines.append(f"{part.heading}:")
            lines += [f"  {line}" for line in clean_text(part.text).splitlines() or [""]]
    return "\n".join(lines)


def cut(text: str, limit: int) -> str:
    """At most `limit` characters, with a sign where the rest was left out."""
    return text if len(text) <= limit else text[:limit] + " …"


def as_html(parts: Sequence[Part], limit: int) -> str:
    """The parts as blocks, escaped; texts are cut to `limit` characters."""
    blocks = []
    for part in parts:
        shown = escape(cut(clean_text(part.text), limit))
        marks = "".join(
            f' <span class="mark{" bad" if part.is_bad else ""}">{escape(mark)}</span>'
            for mark in part.marks
        )
        blocks.append(
            f'<div class="turn {part.author}"><span class="who">{escape(part.label)}{marks}</span>{shown}</div>'
        )
    return "".join(blocks)


STYLE = """
.turn{margin:0 0 .35rem;padding:.25rem .5rem;border-left:3px solid #2463b4}
.turn.observation{border-color:#9aa4ae;background:#f3f5f7}
.turn.end{border-color:transparent;padding-top:0;color:#66707a}
.who{display:block;font-size:.78rem;color:#66707a}.turn.end .who{display:inline;margin-right:.4rem}
.mark{border:1px solid currentColor;border-radius:.6rem;padding:0 .4rem;margin-left:.3rem}.mark.bad{color:#b42318}
@media (prefers-color-scheme:dark){.turn{border-color:#7ab0f5}.turn.observation{border-color:#55606a;background:#20252a}
 .mark.bad{color:#ff8a7a}.who,.turn.end{color:#9aa4ae}}
"""
"""Of `as_html`, for the page that holds it."""
