r"""The one rule of what the answer of an attempt is: the text behind its thoughts, in a turn written to its end.

Verifiers, judges and call formats read an attempt through this module:

- Thoughts are left out: the answer stands behind the last tag that closes one. While a thought is open, also one that
  the chat template opened, nothing is answered, and no tool is called.
- `<answer>...</answer>` behind the thoughts holds the answer, where it stands; the last one counts.
- An attempt that ran into a limit (of tokens, of turns) has not answered, unless an answer stands there that is
  explicit and whole: a closed `<answer>` tag or `\boxed{...}`. A call of a tool is never an answer.

Thoughts are marked by text (`<think>`, `<reasoning>`, ...), or by control tokens that the text of a turn leaves out
(`[THINK]`, the channels of OpenAI's harmony format): `Turn.marked_text` holds such a turn with its marks spelled.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from policies.base.records import StopReason, Trajectory, TrajectoryStatus

_NAMED = r"(?:think|thinking|thoughts?|reasoning|reflection|scratchpad|inner_monologue)"
_FAMILIES: tuple[tuple[str, str], ...] = (
    (rf"<(?:\w+[:_])?{_NAMED}>", rf"</(?:\w+[:_])?{_NAMED}>"),
    (r"\[THINK\]", r"\[/THINK\]"),
    ("\u25c1think\u25b7", "\u25c1/think\u25b7"),
    (r"<\|begin_of_thought\|>", r"<\|end_of_thought\|>"),
    (r"<\|START_THINKING\|>", r"<\|END_THINKING\|>"),
    (r"<\|inner_prefix\|>", r"<\|inner_suffix\|>"),
    (r"<\|channel>thought\b", r"<channel\|>"),
    (r"<unused94>thought\b", r"<unused95>"),
    (r"\AHere is my thought process:", r"Here is my response:"),
)
"""Openings and closings of thoughts, one family each: DeepSeek, Qwen and most others; Magistral; Kimi; Sky-T1; Command
A; Apertus; Gemma; MedGemma; Granite."""
_MARK = re.compile(
    "|".join(
        f"(?P<open{n}>{opening})|(?P<close{n}>{closing})"
        for n, (opening, closing) in enumerate(_FAMILIES)
    ),
    re.IGNORECASE,
)
_MARK_TOKENS = ("<|channel|>", "<|channel>", "<channel|>", "_of_solution|>", "<unused94>")
_NAME = re.compile(r"reasoning|reflection|scratchpad|inner_monologue", re.IGNORECASE)
_BEGINNINGS = ("<", "[", "\u25c1", "Here is my", "here is my")
_CHANNEL = "<|channel|>"
_FINAL = re.compile(r"<\|channel\|>\s*final\b[^<]*(?:<\|constrain\|>[^<]*)?<\|message\|>")
_END_OF_MESSAGE = re.compile(r"<\|(?:end|return|call|start|channel)\|>")
_BARE_FINAL = re.compile(r"\Aanalysis.*assistantfinal", re.DOTALL)
"""Harmony's channels once a tokenizer has left its control tokens out."""
_TAG = r"(?:answer|final_answer)"
_ANSWER_TAG = re.compile(rf"<(?P<close>/?){_TAG}>", re.IGNORECASE)
_SOLUTION = re.compile(r"<\|begin_of_solution\|>(.*?)(?:<\|end_of_solution\|>|\Z)", re.DOTALL)
_BOX = re.compile(r"\\(?:boxed|fbox)\s*\{")


@dataclass(frozen=True)
class AttemptAnswer:
    """The answer of an attempt. Example: `AttemptAnswer("", missing="the thought is not finished")`."""

    text: str
    """The answer's words, without the tags around them; empty when there is none."""
    missing: str = ""
    """Why there is no answer; empty when there is one, be it blank."""


def answer_of(attempt: Trajectory, *, unfinished: bool = False) -> AttemptAnswer:
    """The answer of `attempt`: of its `graded` turn, else of its last policy turn.

    Args:
        attempt: any attempt; its status and endings say whether it ran into a limit.
        unfinished: take what stands there for the answer also where a limit cut the attempt; open thoughts and calls
            are none even then.
    """
    index = _graded_turn(attempt)
    if index is None:
        return AttemptAnswer("", "the policy wrote nothing")
    turn = attempt.turns[index]
    spoken = without_thoughts(turn.marked_text or turn.text, turn.opened_thought)
    if spoken is None:
        return AttemptAnswer("", "the thought is not finished")
    if any(following.calls for following in attempt.turns[index + 1 : index + 2]):
        return AttemptAnswer("", "the attempt ended with a tool call")
    if unfinished or not is_cut(attempt):
        tagged = tagged_answer(spoken, ended=True)
        return AttemptAnswer(spoken.strip() if tagged is None else tagged)
    explicit = explicit_answer(spoken)
    if explicit is None:
        return AttemptAnswer("", "the attempt ran into a limit before it had answered")
    return AttemptAnswer(explicit)


def is_cut(attempt: Trajectory) -> bool:
    """Tell whether a limit ended the graded turn, or the attempt behind it; a turn graded by name stands for itself."""
    index = _graded_turn(attempt)
    of_turn = index is not None and attempt.turns[index].stop_reason is StopReason.LENGTH
    return of_turn or (attempt.graded is None and attempt.status is TrajectoryStatus.TRUNCATED)


def written_by(attempt: Trajectory) -> str:
    """All of the graded turn, thoughts and their marks included, also the mark with which the template began it."""
    index = _graded_turn(attempt)
    if index is None:
        return ""
    turn = attempt.turns[index]
    return turn.opened_thought + (turn.marked_text or turn.text)


def without_thoughts(text: str, opened: str = "") -> str | None:
    """`text` behind its last thought; None while a thought is open.

    Args:
        text: of one turn.
        opened: the mark of a thought that the prompt ended with, if it did (see `left_open`).

    Example:
        >>> without_thoughts("7 * 8 is 54. No.</think> It is 56.", "<think>")
        ' It is 56.'
    """
    if _CHANNEL in text:
        return _final_channel(text)
    if (bare := _BARE_FINAL.match(text)) is not None:
        return text[bare.end() :]
    inside, start = _thoughts(opened + text)
    return None if inside else (opened + text)[start:]


def left_open(prompt: str, controls: Sequence[str] = ()) -> str:
    """The mark of the thought that is open at the end of `prompt`; empty when none is.

    A mark counts at the very end, where a chat template puts it, or behind the last control token of the prompt:
    what users write about marks is neither.

    Args:
        prompt: the end of what the policy reads, control tokens spelled.
        controls: texts of the chat format's control tokens.
    """
    at_end = [m for m in _marks(prompt) if _is_open(m) and not prompt[m.end() :].strip()]
    if at_end:
        return at_end[-1].group()
    others = [c for c in controls if c in prompt and not is_mark(c)]
    last = max((prompt.rfind(c) + len(c) for c in others), default=len(prompt))
    begun = prompt[last:]
    return next(m.group() for m in _marks(begun) if _is_open(m)) if _thoughts(begun)[0] else ""


def is_mark(control: str) -> bool:
    """Tell whether a control token marks thoughts, channels or answers."""
    return _MARK.fullmatch(control) is not None or any(part in control for part in _MARK_TOKENS)


def tagged_answer(spoken: str, *, ended: bool) -> str | None:
    """Return what the last `<answer>` tag holds; None without one.

    One that is not closed counts when the turn has `ended`: a stop string may have taken the closing away.
    """
    inside: int | None = None
    answer: str | None = None
    for tag in _ANSWER_TAG.finditer(spoken):
        if not tag["close"]:
            inside = tag.end()
        elif inside is not None:
            answer, inside = spoken[inside : tag.start()].strip(), None
    if inside is not None:
        return spoken[inside:].strip() if ended else None
    if answer is not None:
        return answer
    solution = list(_SOLUTION.finditer(spoken))
    if solution and (ended or "<|end_of_solution|>" in solution[-1].group()):
        return solution[-1].group(1).strip()
    return None


def explicit_answer(spoken: str) -> str | None:
    """The answer that stands in a text that was cut: of a closed tag, else the last closed box, box included."""
    tagged = tagged_answer(spoken, ended=False)
    if tagged is not None:
        return tagged
    if any(not tag["close"] for tag in _ANSWER_TAG.finditer(spoken)):
        return None  # the last one is open
    starts = [found.start() for found in _BOX.finditer(spoken)]
    end = closing_brace(spoken, spoken.index("{", starts[-1])) if starts else None
    return None if end is None else spoken[starts[-1] : end + 1]


def closing_brace(text: str, opening: int) -> int | None:
    """Position of the brace that closes the one at `opening`; escaped braces are text. None when none does."""
    depth = 0
    for match in re.compile(r"\\.|[{}]", re.DOTALL).finditer(text, opening):
        depth += {"{": 1, "}": -1}.get(match.group(), 0)
        if depth == 0:
            return match.start()
    return None


def _graded_turn(attempt: Trajectory) -> int | None:
    if attempt.graded is not None:
        return attempt.graded.turn
    return next(
        (n for n in reversed(range(len(attempt.turns))) if attempt.turns[n].role == "policy"), None
    )


def _final_channel(text: str) -> str | None:
    """The last message in harmony's channel `final`; None without one."""
    finals = list(_FINAL.finditer(text))
    if not finals:
        return None
    start = finals[-1].end()
    end = _END_OF_MESSAGE.search(text, start)
    return text[start : end.start() if end else len(text)]


def _marks(text: str) -> list[re.Match[str]]:
    if not any(begin in text for begin in _BEGINNINGS):
        return []  # most texts; the pattern is slow on long ones
    return list(_MARK.finditer(text))


def _is_open(mark: re.Match[str]) -> bool:
    return (mark.lastgroup or "").startswith("open")


def _kind(mark: re.Match[str]) -> str:
    """Marks of one kind close each other: `<think>` and `</thinking>`, but not `<reasoning>` and `</think>`."""
    family = (mark.lastgroup or "").removeprefix("open").removeprefix("close")
    named = _NAME.search(mark.group()) if family == "0" else None
    return named.group().lower() if named else family


def _thoughts(text: str) -> tuple[bool, int]:
    """Tell whether a thought is open at the end of `text`, and where what follows the last thought begins.

    A mark that is named again inside a thought of its kind opens nothing; a closing without an opening ends a thought
    that began before the text.
    """
    stack: list[str] = []
    start = 0
    for mark in _marks(text):
        kind = _kind(mark)
        if _is_open(mark):
            stack += [] if kind in stack else [kind]
            continue
        if kind in stack:
            del stack[stack.index(kind) :]
        if not stack:
            start = mark.end()
    return bool(stack), start
