"""What each call format reads in a turn, case by case, and how it shows an output."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from policies.base.component import create
from policies.base.records import Message
from workers.rollout.call_format import CALL_FORMATS, Parsed
from workers.rollout.tool import ToolOutput

OPEN, CLOSE = "<tool_call>", "</tool_call>"


def parse(text: str, name: str = "fenced_code", **given: Any) -> Parsed:
    parsed: Parsed = create(CALL_FORMATS.parse({"type": name, **given})).parse(text)
    return parsed


def codes(text: str, **given: Any) -> list[object]:
    parsed = parse(text, **given)
    assert parsed.problem is None
    return [call.arguments["code"] for call in parsed.calls]


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("```python\nprint(1)\n```", "print(1)"),
        ("```PY\r\nprint(1)\r\n```\r\n", "print(1)"),
        ("  ```python  \n  print(1)\n  ```", "  print(1)"),
        ("Sure: ```python\nprint(1)```", "print(1)"),
        ("```python\nprint('```')\n```", "print('```')"),
        ("````python\nx = '''\n```\n'''\n````", "x = '''\n```\n'''"),
        ("```python\nprint(1)\n```output\n1\n```", "print(1)"),
        ("```python\nprint(1)\n``` and so on", "print(1)"),
        ("```\n```python\nprint(1)\n```", "print(1)"),
        ("```\nfoo\n```\n```python\nprint(1)\n```\n```\n", "print(1)"),
    ],
)
def test_a_fenced_block_is_found_as_small_models_write_it(text: str, code: str) -> None:
    assert codes(text) == [code]


@pytest.mark.parametrize(
    "text",
    [
        "```output\n3\n```\nThe answer is 3.",
        "```\nprint(1)\n```",
        "```javascript\nalert(1)\n```",
        "````md\n```python\nprint(1)\n```\n````",
        "Use ``python`` or `python`.",
        "```pythonic\nprint(1)\n```",
    ],
)
def test_other_blocks_are_text(text: str) -> None:
    assert parse(text) == Parsed()


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("```python\nprint(1)", "not closed"),
        ("```python", "not closed"),
        ("````python\nprint(1)\n```", "not closed"),
        ("```python\n```python\nprint(1)\n```\n```", "opens inside another"),
        ("```python\nx = 1\n```py\nprint(1)\n```", "opens inside another"),
        ("```python print(1)\n```", "on a line of its own"),
        ("```python print(1)```", "on a line of its own"),
        ("```python\n \n```", "empty"),
        ("```python\nprint(1)\n```\n```python\nprint(2)", "not closed"),
    ],
)
def test_what_looks_like_a_block_and_is_none_is_told_with_what_to_write(
    text: str, problem: str
) -> None:
    parsed = parse(text)
    assert parsed.calls == ()
    assert parsed.problem is not None
    assert problem in parsed.problem
    assert parsed.problem.endswith("a line ```python, then the code, then a line ```.")


def test_the_fenced_format_can_call_another_tool_in_another_language() -> None:
    settings: dict[str, Any] = {"tool": "sql", "argument": "query", "languages": ["sql"]}
    (call,) = parse("```SQL\nselect 1\n```", **settings).calls
    assert (call.tool, call.arguments) == ("sql", {"query": "select 1"})
    assert parse("```python\n1\n```", **settings) == Parsed()


def test_an_output_is_shown_as_in_the_worked_example() -> None:
    shown = create(CALL_FORMATS.parse("fenced_code")).messages([("python", ToolOutput("372"))])
    assert shown == (Message(role="user", content="Output: 372"),)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (f'{OPEN}{{"name": "a"', "not JSON"),
        (f"{OPEN}", "not JSON"),
        (f"{CLOSE}", "without"),
        (f'{OPEN}{{"name": "a"}}{CLOSE}{CLOSE}', "without"),
        (f'{OPEN}{{"name": "a"}}', "does not end with"),
        (f'{OPEN}{{"name": "a"}} and{CLOSE}', "does not end with"),
        (f'{OPEN}{OPEN}{{"name": "a"}}{CLOSE}', "not JSON"),
        (f"{OPEN}[1]{CLOSE}", "not a list"),
        (f"{OPEN}null{CLOSE}", "not null"),
        (f'{OPEN}{{"arguments": {{}}}}{CLOSE}', 'needs a "name"'),
        (f'{OPEN}{{"name": 7}}{CLOSE}', 'needs a "name"'),
        (f'{OPEN}{{"name": ""}}{CLOSE}', 'needs a "name"'),
        (f'{OPEN}{{"name": "a", "arguments": "x"}}{CLOSE}', "must be an object, not a text"),
        (f'{OPEN}{{"name": "a", "arguments": null}}{CLOSE}', "must be an object, not null"),
        (f'{OPEN}{{"name": "a", "parameters": {{}}}}{CLOSE}', "unknown key 'parameters'"),
        (f'{OPEN}{{"name": "a", "name": "b"}}{CLOSE}', "comes twice"),
        (f'{OPEN}{{"name": "a", "arguments": {{"x": NaN}}}}{CLOSE}', "NaN"),
        (f'{OPEN}{{"name": "a", "arguments": {{"x": -1e999}}}}{CLOSE}', "too large"),
        (f'{OPEN}{{"name": "a", "arguments": {{"x": {"9" * 5000}}}}}{CLOSE}', "5000 digits"),
        (f'{OPEN}{{"name": "a", "arguments": {{"x": "\\ud800"}}}}{CLOSE}', "surrogate"),
        (f'{OPEN}{{"name": "a", "arguments": {{"x": {"[" * 40}{"]" * 40}}}}}{CLOSE}', "nested"),
        (f"{OPEN}{'[' * 100_000}", "nested too deep"),
        (f"{OPEN}{{'name': 'a'}}{CLOSE}", "not JSON"),
    ],
)
def test_json_that_is_no_call_is_told_with_what_to_write(text: str, problem: str) -> None:
    parsed = parse(text, "hermes")
    assert parsed.calls == ()
    assert parsed.problem is not None
    assert problem in parsed.problem
    assert parsed.problem.endswith(
        'Write <tool_call>{"name": ..., "arguments": {...}}</tool_call>.'
    )


def test_a_closing_tag_in_an_argument_does_not_end_the_call() -> None:
    (call,) = parse(
        f'{OPEN}{{"name": "a", "arguments": {{"x": "{CLOSE}"}}}}{CLOSE}', "hermes"
    ).calls
    assert call.arguments == {"x": CLOSE}


def test_a_call_without_arguments_has_none() -> None:
    (call,) = parse(f'so {OPEN}\n{{"name": "now"}}\n{CLOSE}', "hermes").calls
    assert (call.tool, call.arguments) == ("now", {})


def test_json_answers_are_a_message_each_or_one_for_the_user() -> None:
    results = [("a", ToolOutput("1")), ("b", ToolOutput("2"))]
    as_tool = create(CALL_FORMATS.parse("hermes")).messages(results)
    assert as_tool == (Message(role="tool", content="1"), Message(role="tool", content="2"))
    user = {"type": "hermes", "observation_role": "user"}
    (as_user,) = create(CALL_FORMATS.parse(user)).messages(results)
    assert as_user.role == "user"
    assert as_user.content == (
        "<tool_response>\n1\n</tool_response>\n<tool_response>\n2\n</tool_response>"
    )


def test_only_the_json_format_hands_schemas_to_the_template() -> None:
    offers = {name: CALL_FORMATS.resolve(name).offers_schemas for name in ("fenced_code", "hermes")}
    assert offers == {"fenced_code": False, "hermes": True}


def test_a_users_own_format_is_named_by_its_file(tmp_path: Path) -> None:
    path = tmp_path / "mine.py"
    path.write_text(
        "from workers.rollout.call_format import CallFormat, Parsed, RequestedCall\n"
        "class Mine(CallFormat):\n"
        "    def parse(self, text):\n"
        "        return Parsed((RequestedCall('python', {'code': text[4:]}),) if text[:4] == 'RUN ' else ())\n",
        encoding="utf-8",
    )
    mine = create(CALL_FORMATS.parse(f"{path}:Mine"))
    assert mine.parse("RUN 1").calls[0].arguments == {"code": "1"}
    assert mine.parse("1") == Parsed()
