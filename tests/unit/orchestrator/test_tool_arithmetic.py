"""The questions for a policy with Python: right answers, sets that never meet, demonstrations that are right."""

from __future__ import annotations

import ast
import re
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.prompts.overlap import check_overlap
from orchestrator.prompts.source import PROMPT_SOURCES
from policies.base.component import create
from policies.base.errors import InputError
from policies.base.records import Prompt
from workers.rollout.call_format import CALL_FORMATS
from workers.rollout.tool import TOOLS

FORMS = ["times", "times_plus", "times_minus", "plus_minus"]
WORDS = {"times": "*", "plus": "+", "minus": "-"}


def load(**given: Any) -> list[Prompt]:
    prompts: list[Prompt] = create(
        PROMPT_SOURCES.parse({"type": "tool_arithmetic", **given})
    ).load()
    return prompts


def question(prompt: Prompt) -> str:
    return prompt.messages[-1].content


def numbers(prompt: Prompt) -> list[int]:
    return [int(n) for n in re.findall(r"\d+", question(prompt))]


def test_the_chat_is_system_line_worked_example_and_question() -> None:
    messages = load(count=1)[0].messages
    assert [m.role for m in messages] == [
        "system",
        "user",
        "assistant",
        "user",
        "assistant",
        "user",
    ]
    assert messages[0].content == (
        "You solve problems with Python. Write a code block, read its output, then give the answer."
    )
    assert [m.content for m in messages[1:5]] == [
        "What is 12 times 31?",
        "```python\nprint(12 * 31)\n```",
        "Output: 372",
        "The answer is 372.",
    ]
    bare = load(count=1, worked_example=False, system=None)[0].messages
    assert [m.content for m in bare] == [messages[-1].content]


def test_the_answer_is_what_the_calculator_says() -> None:
    calculator = create(TOOLS.parse("calculator"))
    for prompt in load(count=200):
        expression = question(prompt).removeprefix("What is ").removesuffix("?")
        for word, sign in WORDS.items():
            expression = expression.replace(word, sign)
        assert str(prompt.answer) == calculator.compute(expression)


def test_forms_come_in_equal_parts_and_numbers_stay_in_range() -> None:
    prompts = load(count=40)
    patterns = [r" times \d+\?", r" times \d+ plus ", r" times \d+ minus ", r"plus \d+ minus "]
    counts = [sum(bool(re.search(p, question(prompt))) for prompt in prompts) for p in patterns]
    assert counts == [10, 10, 10, 10]
    for prompt in load(count=100, low=20, high=40):
        assert all(20 <= n <= 40 for n in numbers(prompt)[:2])
        assert all(2 <= n <= 40 for n in numbers(prompt)[2:])


@given(
    st.integers(0, 5),
    st.integers(1, 60),
    st.integers(1, 60),
    st.lists(st.sampled_from(FORMS), min_size=1, unique=True),
)
@settings(max_examples=30, deadline=None)
def test_the_two_sets_never_meet_whatever_their_sizes(
    seed: int, count: int, held_out: int, forms: list[str]
) -> None:
    train = load(count=count, split_seed=seed, forms=forms)
    held = load(split="held_out", held_out=held_out, split_seed=seed, forms=list(reversed(forms)))
    assert (len(train), len(held)) == (count, held_out)
    check_overlap(train, held)


def test_a_mirror_image_is_no_way_into_the_other_set() -> None:
    def key(prompt: Prompt) -> tuple[object, ...]:
        a, b, *rest = numbers(prompt)
        words = tuple(re.findall(r"times|plus|minus", question(prompt)))
        return (words, *sorted((a, b)), *rest)

    small = {"low": 10, "high": 40, "forms": ["times"]}
    train, held = load(count=300, **small), load(split="held_out", held_out=80, **small)
    assert not {key(p) for p in train} & {key(p) for p in held}


def test_more_questions_keep_the_first_ones_and_another_seed_gives_others() -> None:
    assert load(count=50)[:10] == load(count=10)
    assert {p.id for p in load(count=50)} != {p.id for p in load(count=50, split_seed=1)}


def test_the_worked_question_is_never_asked() -> None:
    everything = [
        prompt
        for split in ("train", "held_out")
        for prompt in load(split=split, count=30, held_out=9, low=10, high=34, forms=["times"])
    ]
    small = load(count=200, low=12, high=31, forms=["times"])
    asked = {question(prompt) for prompt in everything + small}
    assert not asked & {"What is 12 times 31?", "What is 31 times 12?"}


def test_a_demonstration_calls_the_tool_and_ends_with_the_answer() -> None:
    call_format = create(CALL_FORMATS.parse("fenced_code"))
    assert load(count=1)[0].metadata == {}
    for prompt in load(count=40, demonstrations=True):
        shown = prompt.metadata["demonstration"]
        assert isinstance(shown, list)
        first, observation, last = (ast.literal_eval(str(message)) for message in shown)
        (call,) = call_format.parse(first["content"]).calls
        code = re.fullmatch(r"print\((.*)\)", call.arguments["code"])
        assert code is not None
        calculated = create(TOOLS.parse("calculator")).compute(code.group(1))
        assert calculated == str(prompt.answer)
        assert [first["role"], observation["role"], last["role"]] == [
            "assistant",
            "user",
            "assistant",
        ]
        assert observation["content"] == f"Output: {prompt.answer}"
        assert last["content"] == f"The answer is {prompt.answer}."


def test_more_questions_than_there_are_is_refused() -> None:
    with pytest.raises(InputError, match=r"not enough train questions .*2\.\.5.*train\.count"):
        load(low=2, high=5, forms=["times"], count=17)
    with pytest.raises(InputError, match=r"prompts\.held_out\.held_out"):
        load(split="held_out", low=2, high=5, forms=["times"], held_out=17)


@pytest.mark.parametrize(
    "bad", [{"low": 5, "high": 4}, {"forms": []}, {"forms": ["over"]}, {"forms": ["times"] * 2}]
)
def test_impossible_settings_are_refused(bad: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r".+"):
        PROMPT_SOURCES.parse({"type": "tool_arithmetic", **bad})
