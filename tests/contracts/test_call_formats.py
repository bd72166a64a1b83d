"""What every call format promises, found by family: a new file in the folder is tested with no edit here."""

from __future__ import annotations

import json
import pickle
import time
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from policies.base.component import create
from policies.base.records import ToolCallStatus
from workers.rollout.call_format import CALL_FORMATS, CallFormat, Parsed
from workers.rollout.tool import ToolOutput

NAMES = list(CALL_FORMATS.members())
CALL = {
    "fenced_code": "```python\nprint(1)\n```",
    "hermes": '<tool_call>\n{"name": "python", "arguments": {"code": "print(1)"}}\n</tool_call>',
}
MARKS = [
    "```",
    "````",
    "```python",
    "```python\n",
    "\n```\n",
    "\r\n",
    "<tool_call>",
    "</tool_call>",
    '{"name": "python", "arguments": {',
    '"code": "1"}}',
    "[[",
    "}}",
    '"\\ud800"',
    "NaN",
    "1e999",
    "\x00",
    "\u2028",
    "\x1b[31m",
    "print(1)",
    " ",
]
HUGE = [*MARKS, "a", "\n", '{"a":', "`", "<", "x = '''", "9"]


@pytest.fixture(scope="module", params=NAMES)
def call_format(request: pytest.FixtureRequest) -> CallFormat:
    built: CallFormat = create(CALL_FORMATS.parse(request.param))
    return built


def test_there_are_formats_to_test() -> None:
    assert {"fenced_code", "hermes"} <= set(NAMES)


def test_a_call_is_read_wherever_it_stands_in_the_turn(call_format: CallFormat) -> None:
    written = CALL[call_format.config.type]
    for text in (written, f"Let me see.\n{written}", f"{written}\nNow I wait.\n"):
        (call,) = call_format.parse(text).calls
        assert (call.tool, call.arguments) == ("python", {"code": "print(1)"})


def test_two_calls_are_read_in_their_order(call_format: CallFormat) -> None:
    written = CALL[call_format.config.type]
    calls = call_format.parse(f"{written}\nand\n{written.replace('(1)', '(2)')}").calls
    assert [call.arguments["code"] for call in calls] == ["print(1)", "print(2)"]


def test_a_turn_without_a_call_is_an_answer(call_format: CallFormat) -> None:
    for text in ("", " \n", "The answer is 56.", "a ` b `` c", "1 < 2 > {0}"):
        assert call_format.parse(text) == Parsed()


def test_a_cut_call_is_a_problem_that_says_what_to_write(call_format: CallFormat) -> None:
    written = CALL[call_format.config.type]
    parsed = call_format.parse(written[: len(written) // 2 + 4])
    assert parsed.calls == ()
    assert parsed.problem is not None
    assert "Write " in parsed.problem


def test_too_many_calls_are_a_problem_not_work(call_format: CallFormat) -> None:
    parsed = call_format.parse("\n".join([CALL[call_format.config.type]] * 50))
    assert parsed.calls == ()
    assert "more than" in (parsed.problem or "")


def check_sound(parsed: Parsed) -> None:
    """Calls or a problem but not both, and everything can be stored."""
    assert not (parsed.calls and parsed.problem)
    assert len(parsed.problem or "") < 500
    for call in parsed.calls:
        assert call.tool
        json.dumps([call.tool, call.arguments], allow_nan=False, ensure_ascii=False).encode()


FORMATS: list[CallFormat] = [create(CALL_FORMATS.parse(name)) for name in NAMES]


@given(st.lists(st.sampled_from(MARKS) | st.text(max_size=4), max_size=12).map("".join))
@settings(max_examples=300, deadline=None)
def test_any_text_can_be_read(text: str) -> None:
    for each in FORMATS:
        check_sound(each.parse(text))


@pytest.mark.parametrize("piece", HUGE)
def test_a_megabyte_of_anything_is_read_in_linear_time(call_format: CallFormat, piece: str) -> None:
    small, large = piece * (50_000 // len(piece)), piece * (1_000_000 // len(piece))
    seconds = []
    for text in (small, large):
        written = f"{text}\n{CALL[call_format.config.type]}\n{text}"
        best = float("inf")
        for _ in range(2):  # the better of two: other processes share the machine
            started = time.process_time()
            check_sound(call_format.parse(written))
            best = min(best, time.process_time() - started)
        seconds.append(best)
    # Twenty times the text; four hundred times the time if reading were quadratic.
    assert seconds[1] < 120 * max(seconds[0], 0.001)


def test_every_output_is_shown_in_order_whatever_its_status(call_format: CallFormat) -> None:
    results = [
        ("python", ToolOutput(f"output-{n}", status)) for n, status in enumerate(ToolCallStatus)
    ]
    shown = "".join(message.content for message in call_format.messages(results))
    positions = [shown.find(output.text) for _, output in results]
    assert -1 not in positions
    assert positions == sorted(positions)
    assert all(message.role != "assistant" for message in call_format.messages(results))
    assert call_format.messages([("python", ToolOutput(""))])


@pytest.mark.parametrize("name", NAMES)
def test_settings_survive_json_and_pickle(name: str) -> None:
    given: dict[str, Any] = {"type": name, "observation_role": "user"}
    config = CALL_FORMATS.parse(given)
    assert CALL_FORMATS.parse(config.model_dump(mode="json")) == config
    assert pickle.loads(pickle.dumps(config)) == config
    with pytest.raises(ValueError, match="no_such_setting"):
        CALL_FORMATS.parse({**given, "no_such_setting": 1})
