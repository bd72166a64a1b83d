"""The calculator's arithmetic and limits, and the tool that fails by a draw."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from policies.base.component import create
from policies.base.records import ToolCallStatus
from workers.rollout.tool import TOOLS, BadArgumentsError, Tool, text_argument


def calculate(expression: str, **given: Any) -> tuple[ToolCallStatus, str]:
    tool: Tool = create(TOOLS.parse({"type": "calculator", **given}))
    output = tool.open(seed=0).call({"expression": expression})
    return output.status, output.text


@pytest.mark.parametrize(
    ("expression", "value"),
    [
        ("57 * 83 + 6", "4737"),
        ("2 + 3 * (4 - 1) ** 2", "29"),
        ("7 // 2 - 7 % 4", "0"),
        ("-3 ** 2", "-9"),
        ("1 / 4", "0.25"),
        ("4 / 2", "2"),
        ("0.1 + 0.2", "0.3"),
        ("2 ** -1", "0.5"),
        ("3 × 4 ÷ 6 − 1", "1"),
        (" 12\n*\t31 ", "372"),
        ("1_000 * 3", "3000"),
        ("10 ** 299", "1" + "0" * 299),
    ],
)
def test_arithmetic_is_computed(expression: str, value: str) -> None:
    assert calculate(expression) == (ToolCallStatus.OK, value)


@pytest.mark.parametrize(
    ("expression", "error"),
    [
        ("", "not an arithmetic expression"),
        ("1 +", "not an arithmetic expression"),
        ("1 2", "not an arithmetic expression"),
        ("(1, 2)", "',' is not arithmetic"),
        ("007", "not an arithmetic expression"),
        ("2e", "not an arithmetic expression"),
        ("7 ^ 2", "a power is written **"),
        ("1 / 0", "division by zero"),
        ("0 ** -1", "division by zero"),
        ("5 % 0", "division by zero"),
        ("(-8) ** 0.5", "not a real number"),
        ("1e308 * 10", "too large"),
        ("1e999", "too large"),
        ("1e200 ** 2", "too large"),
        ("10 ** 400 / 3", "more than 300 digits"),
        ("9 ** 9 ** 9 ** 9", "more than 300 digits"),
        ("(9 ** 250) * (9 ** 250)", "more than 300 digits"),
        ("1 + " * 60 + "1", "longer than 200 characters"),
        ("().__class__", "is not arithmetic"),
        ("True", "'T' is not arithmetic"),
        ("'a' * 9", "is not arithmetic"),
    ],
)
def test_what_has_no_value_is_told(expression: str, error: str) -> None:
    status, text = calculate(expression)
    assert status is ToolCallStatus.FAILED
    assert text.startswith("Error: ")
    assert error in text


CALCULATOR: Tool = create(TOOLS.parse("calculator"))


@given(st.text(alphabet="0123456789.eE_+-*/%() ", max_size=60))
@settings(max_examples=300, deadline=None)
def test_any_arithmetic_looking_text_has_a_value_or_an_error(text: str) -> None:
    output = CALCULATOR.open(seed=0).call({"expression": text})
    assert (output.status is ToolCallStatus.OK) != output.text.startswith("Error: ")
    assert len(output.text) <= 400


def flaky(rate: float, **given: Any) -> Tool:
    settings: dict[str, Any] = {"type": "flaky", "tool": "calculator", "failure_rate": rate}
    tool: Tool = create(TOOLS.parse({**settings, **given}))
    return tool


def outcomes(tool: Tool, seed: int, calls: int) -> list[ToolCallStatus]:
    session = tool.open(seed)
    return [session.call({"expression": "1"}).status for _ in range(calls)]


def test_the_share_of_failures_is_the_failure_rate() -> None:
    tool = flaky(0.3)
    failed = [outcomes(tool, seed, 1)[0] is ToolCallStatus.FAILED for seed in range(2000)]
    assert 0.27 < sum(failed) / len(failed) < 0.33
    along = outcomes(tool, 0, 2000)
    assert 0.27 < along.count(ToolCallStatus.FAILED) / 2000 < 0.33


def test_failures_are_drawn_from_the_sessions_seed() -> None:
    tool = flaky(0.5)
    assert outcomes(tool, 1, 40) == outcomes(tool, 1, 40)
    assert outcomes(tool, 1, 40) != outcomes(tool, 2, 40)
    assert set(outcomes(flaky(0.0), 1, 40)) == {ToolCallStatus.OK}
    assert set(outcomes(flaky(1.0), 1, 40)) == {ToolCallStatus.FAILED}


def test_a_failed_call_never_reaches_the_wrapped_tool(tmp_path: Path) -> None:
    seen = tmp_path / "seen"
    path = tmp_path / "tools.py"
    path.write_text(
        f"def note(text: str) -> str:\n    open({str(seen)!r}, 'a').write(text)\n    return 'noted'\n",
        encoding="utf-8",
    )
    tool = flaky(1.0, tool={"type": f"{path}:note"}, text="busy")
    output = tool.open(0).call({"text": "x"})
    tool.close()
    assert (output.status, output.text) == (ToolCallStatus.FAILED, "busy")
    assert not seen.exists()


def test_the_wrapped_tools_name_and_schema_show() -> None:
    assert flaky(0.5).config.called == "calculator"
    assert flaky(0.5).schema() == create(TOOLS.parse("calculator")).schema()
    assert flaky(0.5, name="sums").schema()["function"]["name"] == "sums"


def test_a_long_output_is_cut_and_says_so() -> None:
    tool: Tool = create(TOOLS.parse({"type": "calculator", "max_output_characters": 50}))
    cut = tool.output("o" * 51)
    assert (cut.status, len(cut.text), cut.text[-6:]) == (ToolCallStatus.FLOODED, 50, " [cut]")
    assert tool.output("o" * 50).status is ToolCallStatus.OK
    assert tool.output("o" * 51, ToolCallStatus.FAILED).status is ToolCallStatus.FAILED


def test_a_single_text_argument_is_checked() -> None:
    assert text_argument({"code": "x"}, "code") == "x"
    for wrong, said in [
        ({}, "is missing"),
        ({"code": None}, "not null"),
        ({"code": ["x"]}, "not a list"),
        ({"code": "x", "y": 1}, "unknown argument 'y'"),
        ({"code": "\ud800"}, "surrogate"),
    ]:
        with pytest.raises(BadArgumentsError, match=said):
            text_argument(wrong, "code")  # type: ignore[arg-type]


def test_a_users_own_tool_is_named_by_its_file(tmp_path: Path) -> None:
    path = tmp_path / "mine.py"
    path.write_text(
        "from workers.rollout.tool import Tool, ToolSession, ToolOutput\n"
        "class Echo(Tool):\n"
        "    class Config(Tool.Config):\n"
        "        loud: bool = False\n"
        "    def open(self, seed): return Session(self.config.loud)\n"
        "class Session(ToolSession):\n"
        "    def __init__(self, loud): self.loud = loud\n"
        "    def call(self, arguments): return ToolOutput(str(arguments['x']).upper() if self.loud else '')\n",
        encoding="utf-8",
    )
    tool = create(TOOLS.parse({"type": f"{path}:Echo", "loud": True, "name": "echo"}))
    assert tool.open(0).call({"x": "hi"}).text == "HI"
    assert tool.config.called == "echo"
