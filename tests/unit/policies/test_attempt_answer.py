"""What the answer of an attempt is: behind its thoughts, in a turn that was written to its end."""

from __future__ import annotations

from typing import Any

import pytest

from policies.base.attempt_answer import answer_of, left_open, without_thoughts, written_by
from policies.base.records import (
    Ending,
    Span,
    StopReason,
    ToolCall,
    ToolCallStatus,
    Trajectory,
    TrajectoryStatus,
    Turn,
)
from tests.support.attempts import attempt


def turn(text: str, stop: StopReason = StopReason.STOP, opened: str = "", marked: str = "") -> Turn:
    return Turn(
        role="policy",
        token_ids=(7,),
        text=text,
        logprobs=(-1.0,),
        stop_reason=stop,
        opened_thought=opened,
        marked_text=marked,
    )


def observed(text: str, *calls: ToolCall) -> Turn:
    return Turn(
        role="observation",
        token_ids=(3,),
        text=text,
        stop_reason=StopReason.OBSERVATION,
        calls=calls,
    )


def cut(text: str, opened: str = "") -> Trajectory:
    return attempt(
        "",
        turns=(turn(text, StopReason.LENGTH, opened),),
        status=TrajectoryStatus.TRUNCATED,
        ending=Ending.TOKEN_LIMIT,
    )


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("It is 56.", "It is 56."),
        ("<think>54?</think>56", "56"),
        ("<think>\n54?\n</think>\n\n56", "56"),
        ("<THINK>54?</THINK>56", "56"),
        ("<thinking>54?</thinking>56", "56"),
        ("<think>54?</thinking>56", "56"),
        ("<thought>54?</thought>56", "56"),
        ("<thoughts>54?</thoughts>56", "56"),
        ("<reasoning>54?</reasoning>56", "56"),
        ("<scratchpad>54?</scratchpad>56", "56"),
        ("<seed:think>54?</seed:think>56", "56"),
        ("<longcat_think>54?</longcat_think>56", "56"),
        ("[THINK]54?[/THINK]56", "56"),
        ("\u25c1think\u25b754?\u25c1/think\u25b756", "56"),
        ("<|begin_of_thought|>54?<|end_of_thought|>56", "56"),
        ("<|START_THINKING|>54?<|END_THINKING|>56", "56"),
        ("<|inner_prefix|>54?<|inner_suffix|>56", "56"),
        ("<|channel>thought\n54?<channel|>56", "56"),
        ("Here is my thought process: 54? Here is my response: 56", "56"),
        (
            "<|channel|>analysis<|message|>54?<|end|><|start|>assistant<|channel|>final<|message|>56<|return|>",
            "56",
        ),
        ("analysis54? No.assistantfinal56", "56"),
        ("54? No.</think>56", "56"),
        ("<think>I write <think> tags. 54?</think>56", "56"),
        ("<think>I end with </think>, so 54</think>56", "56"),
        ("<think>a</think>55<think>b</think>56", "56"),
        ("<reasoning><think>a</think> 54?</reasoning>56", "56"),
        ("<answer>56</answer>", "56"),
        ("<think>54?</think><answer>56</answer>", "56"),
        ("<think><answer>54</answer></think><answer>56</answer>", "56"),
        ("<answer>55</answer> no, <answer> 56 </answer>", "56"),
        ("<Answer>56</Answer> I am sure, 99 %.", "56"),
        ("<final_answer>56</final_answer>", "56"),
        ("<think>54?</think><answer>56", "56"),
        (
            "<|begin_of_thought|>54<|end_of_thought|><|begin_of_solution|>56<|end_of_solution|>",
            "56",
        ),
        ("<think>54?</think>", ""),
        ("", ""),
    ],
)
def test_the_answer_stands_behind_the_thoughts(text: str, said: str) -> None:
    answer = answer_of(attempt(text))
    assert (answer.text, answer.missing) == (said, "")


@pytest.mark.parametrize(
    ("text", "opened"),
    [
        ("<think>Perhaps \\boxed{56}", ""),
        ("<think>56", ""),
        ("<think>a</think>b<think>56", ""),
        ("<think><reasoning>a</reasoning> 56", ""),
        ("<reasoning><think>a</think> 56", ""),
        ("[THINK]56", ""),
        ("<seed:think><answer>56</answer>", ""),
        ("Perhaps 56", "<think>"),
        ("<answer>56</answer>", "[THINK]"),
        ("<|channel|>analysis<|message|>56<|end|>", ""),
        ('<|channel|>commentary to=f<|message|>{"x": 56}<|call|>', ""),
    ],
)
def test_an_unfinished_thought_answers_nothing(text: str, opened: str) -> None:
    for stop in (StopReason.STOP, StopReason.LENGTH):
        answer = answer_of(attempt("", turns=(turn(text, stop, opened),)), unfinished=True)
        assert answer.text == ""
        assert answer.missing


def test_a_thought_that_the_template_opened_ends_where_its_closing_stands() -> None:
    answered = attempt("", turns=(turn("54? No.\n</think>\n\nIt is 56.", opened="<think>"),))
    assert answer_of(answered).text == "It is 56."
    assert written_by(answered) == "<think>54? No.\n</think>\n\nIt is 56."


def test_marks_that_are_control_tokens_count_although_the_text_has_none() -> None:
    marked = "[THINK]54?[/THINK]56"
    assert answer_of(attempt("", turns=(turn("54?56", marked=marked),))).text == "56"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("7 times 8 is 56. Let me ex", None),
        ("The answer is 56", None),
        ("So \\boxed{5", None),
        ("<answer>5", None),
        ("<answer>55</answer> or rather <answer>5", None),
        ("<think>\\boxed{56}</think> Therefore", None),
        ("So \\boxed{56}. Let me ex", "\\boxed{56}"),
        ("So \\boxed{\\frac{1}{2}} and mo", "\\boxed{\\frac{1}{2}}"),
        ("<answer>56</answer> Let me ex", "56"),
        ("<think>a</think><answer>56</answer> Let me ex", "56"),
        ("\\boxed{55}, no, \\boxed{56}, si", "\\boxed{56}"),
    ],
)
def test_a_cut_attempt_has_answered_only_where_a_closed_tag_or_box_stands(
    text: str, said: str | None
) -> None:
    answer = answer_of(cut(text))
    assert answer.text == (said or "")
    assert bool(answer.missing) == (said is None)
    if said is None and "<think>" not in text:
        assert answer_of(cut(text), unfinished=True).missing == ""


def test_a_call_that_nothing_followed_is_no_answer() -> None:
    call = ToolCall(tool="python", status=ToolCallStatus.OK)
    turns = (turn("```python\nprint(7*8) # \\boxed{56}\n```"), observed("56", call))
    limits = (Ending.TURN_LIMIT, Ending.TOKEN_LIMIT)
    for ending in limits:
        ended = attempt("", turns=turns, status=TrajectoryStatus.TRUNCATED, ending=ending)
        assert answer_of(ended).missing == "the attempt ended with a tool call"


def test_a_turn_that_is_graded_by_name_stands_for_itself() -> None:
    turns = (turn("It is 56."), observed("Check it."), turn("I wonder", StopReason.LENGTH))
    first: dict[str, Any] = {
        "graded": Span(turn=0, start=0, end=1),
        "status": TrajectoryStatus.TRUNCATED,
    }
    assert answer_of(attempt("", turns=turns, **first)).text == "It is 56."
    last: dict[str, Any] = {
        "graded": Span(turn=2, start=0, end=1),
        "status": TrajectoryStatus.TRUNCATED,
    }
    assert answer_of(attempt("", turns=turns, **last)).missing


@pytest.mark.parametrize(
    ("prompt", "opened"),
    [
        ("<|im_start|>user\nQ<|im_end|>\n<|im_start|>assistant\n<think>\n", "<think>"),
        ("<|im_start|>assistant\n<think>\n\n</think>\n\n", ""),
        ("<|im_start|>user\nUse <think> tags<|im_end|>\n<|im_start|>assistant\n", ""),
        ("<|im_start|>user\nUse <think><|im_end|>\n<|im_start|>assistant\n", ""),
        ("<|im_start|>assistant\n<think>\nOkay, let me see.", "<think>"),
        ("[INST]Q[/INST][THINK]", "[THINK]"),
        ("User: Q\nAssistant: <reasoning>", "<reasoning>"),
        ("", ""),
    ],
)
def test_a_thought_is_open_where_the_template_opened_it(prompt: str, opened: str) -> None:
    assert left_open(prompt, ("<|im_start|>", "<|im_end|>", "[THINK]")) == opened


def test_text_without_marks_is_all_spoken() -> None:
    assert without_thoughts("a < b, think > c") == "a < b, think > c"
