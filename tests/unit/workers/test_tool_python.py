"""The Python tool: what the policy reads of a run, and how long variables live. Containment is tested elsewhere."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from policies.base.component import create
from policies.base.records import ToolCallStatus
from workers.rollout.tool import TOOLS, ToolOutput
from workers.rollout.tools.python import Python
from workers.sandbox.settings import SandboxResult, SandboxStatus


def tool_of(**given: Any) -> Python:
    built = create(TOOLS.parse({"type": "python", "timeout_seconds": 2, **given}))
    assert isinstance(built, Python)
    return built


@pytest.fixture(scope="module")
def tool() -> Iterator[Python]:
    built = tool_of()
    yield built
    built.close()


def cells(tool: Python, *codes: str) -> list[ToolOutput]:
    session = tool.open(seed=0)
    found = [session.call({"code": code}) for code in codes]
    session.close()
    return found


def test_the_policy_reads_what_the_code_printed(tool: Python) -> None:
    (output,) = cells(tool, "for n in range(3):\n    print(n)")
    assert output == ToolOutput("0\n1\n2")
    (silent,) = cells(tool, "x = 1")
    assert silent == ToolOutput("(no output: use print)")


def test_after_an_exception_it_reads_the_output_and_the_last_line_of_the_traceback(
    tool: Python,
) -> None:
    (output,) = cells(tool, "print('so far')\nraise ValueError('boo')")
    assert output == ToolOutput("so far\nValueError: boo", ToolCallStatus.FAILED)


def test_more_lines_of_a_traceback_are_shown_when_asked_for() -> None:
    long = tool_of(traceback_lines=3)
    (output,) = cells(long, "x = 1\n1 / 0")
    long.close()
    assert len(output.text.splitlines()) == 3
    assert output.text.endswith("ZeroDivisionError: division by zero")


def test_variables_live_from_call_to_call_of_one_session_only(tool: Python) -> None:
    assert [o.text for o in cells(tool, "x = 5", "print(x * 2)")] == [
        "(no output: use print)",
        "10",
    ]
    (other,) = cells(tool, "print(x)")
    assert other == ToolOutput("NameError: name 'x' is not defined", ToolCallStatus.FAILED)


def test_without_state_each_call_starts_afresh() -> None:
    fresh = tool_of(stateful=False)
    first, second = cells(fresh, "x = 5\nprint(x)", "print(x)")
    fresh.close()
    assert first == ToolOutput("5")
    assert second.status is ToolCallStatus.FAILED


def test_after_a_limit_the_next_call_is_told_that_variables_are_lost(tool: Python) -> None:
    *_, hung, after, later = cells(tool, "x = 5", "while True: pass", "print(x)", "print(1)")
    assert hung == ToolOutput("Error: the program took too long", ToolCallStatus.TIMED_OUT)
    assert after.status is ToolCallStatus.FAILED
    assert "names are lost" in after.text
    assert after.text.endswith("NameError: name 'x' is not defined")
    assert later == ToolOutput("1")


def test_the_smaller_of_the_two_time_limits_counts() -> None:
    quick = tool_of(timeout_seconds=30, sandbox={"wall_seconds": 0.5})
    (output,) = cells(quick, "import time; time.sleep(20)")
    quick.close()
    assert output.status is ToolCallStatus.TIMED_OUT
    assert tool_of(timeout_seconds=2).sandbox.settings.wall_seconds == 2


def test_an_error_is_shown_whole_when_much_was_printed(tool: Python) -> None:
    (output,) = cells(tool, "print('o' * 5000)\n1 / 0")
    assert output.status is ToolCallStatus.FAILED
    assert output.text.endswith("o\nZeroDivisionError: division by zero")
    assert len(output.text) == tool.config.max_output_characters


EXPECTED = {
    SandboxStatus.OK: ToolCallStatus.OK,
    SandboxStatus.RAISED: ToolCallStatus.FAILED,
    SandboxStatus.KILLED: ToolCallStatus.FAILED,
    SandboxStatus.CPU_LIMIT: ToolCallStatus.TIMED_OUT,
    SandboxStatus.WALL_LIMIT: ToolCallStatus.TIMED_OUT,
    SandboxStatus.MEMORY_LIMIT: ToolCallStatus.FAILED,
    SandboxStatus.OUTPUT_LIMIT: ToolCallStatus.FLOODED,
    SandboxStatus.BAD_REPLY: ToolCallStatus.BAD_OUTPUT,
    SandboxStatus.START_FAILED: ToolCallStatus.UNAVAILABLE,
}


@pytest.mark.parametrize("status", SandboxStatus)
def test_every_way_in_which_a_run_ends_is_a_status_with_a_text(
    tool: Python, status: SandboxStatus
) -> None:
    told = tool.told(SandboxResult(status, "", "", 0.1, "bwrap"))
    assert told.status is EXPECTED[status]
    assert told.text
    assert (status is SandboxStatus.OK) != told.text.startswith("Error: ")


def test_building_the_tool_starts_nothing() -> None:
    assert tool_of()._opened is None
