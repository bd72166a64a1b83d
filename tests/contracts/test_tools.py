"""What every tool promises, found by family: a new file in the folder is tested with no edit here.

A tool gets its settings from `SETTINGS` and a call that works from `GOOD`; `MISBEHAVING` says what becomes of calls
that hang, flood, raise or return what is no text, for the tools that run somebody's code.
"""

from __future__ import annotations

import json
import os
import pickle
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from policies.base.component import create
from policies.base.records import Json, ToolCallStatus
from tests.support.heavy_imports import loaded_by
from workers.rollout.tool import TOOLS, Tool
from workers.sandbox.keeper import keeper

NAMES = list(TOOLS.members())
LIMIT = 300
TIMEOUT_SECONDS = 1.0

SETTINGS: dict[str, dict[str, Any]] = {
    "flaky": {"tool": "calculator", "failure_rate": 0.0},
    "function": {"function": "tests.contracts.test_tools:behave"},
}
GOOD: dict[str, tuple[dict[str, Json], str]] = {
    "calculator": ({"expression": "57 * 83 + 6"}, "4737"),
    "flaky": ({"expression": "57 * 83 + 6"}, "4737"),
    "function": ({"how": "well", "number": 4737}, "well 4737"),
    "python": ({"code": "print(57 * 83 + 6)"}, "4737"),
}
MISBEHAVING: dict[str, dict[str, tuple[dict[str, Json], ToolCallStatus]]] = {
    "function": {
        "hangs": ({"how": "hang"}, ToolCallStatus.TIMED_OUT),
        "floods": ({"how": "flood"}, ToolCallStatus.FLOODED),
        "raises": ({"how": "raise"}, ToolCallStatus.FAILED),
        "exits": ({"how": "exit"}, ToolCallStatus.FAILED),
        "ends its process": ({"how": "os._exit"}, ToolCallStatus.FAILED),
        "crashes": ({"how": "segfault"}, ToolCallStatus.FAILED),
        "recurses for ever": ({"how": "recurse"}, ToolCallStatus.FAILED),
        "returns bytes": ({"how": "bytes"}, ToolCallStatus.BAD_OUTPUT),
        "returns nothing": ({"how": "nothing"}, ToolCallStatus.BAD_OUTPUT),
        "returns an object": ({"how": "object"}, ToolCallStatus.BAD_OUTPUT),
        "returns NaN": ({"how": "nan"}, ToolCallStatus.BAD_OUTPUT),
        "writes to every descriptor": ({"how": "scribble"}, ToolCallStatus.FAILED),
        "closes every descriptor": ({"how": "close"}, ToolCallStatus.FAILED),
        "gets a text for a number": ({"how": "well", "number": "7"}, ToolCallStatus.BAD_ARGUMENTS),
        "gets too little": ({}, ToolCallStatus.BAD_ARGUMENTS),
        "gets too much": ({"how": "well", "more": 1}, ToolCallStatus.BAD_ARGUMENTS),
    },
    "python": {
        "hangs": ({"code": "import time; time.sleep(1000)"}, ToolCallStatus.TIMED_OUT),
        "computes for ever": ({"code": "while True: pass"}, ToolCallStatus.TIMED_OUT),
        "floods": ({"code": "while True: print('o' * 2**20)"}, ToolCallStatus.FLOODED),
        "raises": ({"code": "1 / 0"}, ToolCallStatus.FAILED),
        "is no Python": ({"code": "let x = 1;"}, ToolCallStatus.FAILED),
        "ends its process": ({"code": "import os; os._exit(7)"}, ToolCallStatus.FAILED),
        "crashes": ({"code": "import ctypes; ctypes.string_at(0)"}, ToolCallStatus.FAILED),
        "takes all memory": ({"code": "x = [0] * 10**11"}, ToolCallStatus.FAILED),
        "gets a number for code": ({"code": 7}, ToolCallStatus.BAD_ARGUMENTS),
        "gets too little": ({}, ToolCallStatus.BAD_ARGUMENTS),
        "gets too much": ({"code": "1", "more": 1}, ToolCallStatus.BAD_ARGUMENTS),
    },
    "calculator": {
        "divides by zero": ({"expression": "1 / 0"}, ToolCallStatus.FAILED),
        "computes for ever": ({"expression": "9 ** 9 ** 9 ** 9"}, ToolCallStatus.FAILED),
        "is code": ({"expression": "__import__('os').getpid()"}, ToolCallStatus.FAILED),
        "nests too deep": ({"expression": "(" * 199}, ToolCallStatus.FAILED),
        "gets a number for a text": ({"expression": 7}, ToolCallStatus.BAD_ARGUMENTS),
    },
}
HEAVY = ("torch", "vllm", "ray", "mlflow", "trl", "transformers", "datasets")

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)
ARGUMENT_NAMES = st.sampled_from(["expression", "code", "how", "number"]) | st.text(max_size=5)


def behave(how: str, number: int = 0) -> object:
    """Does what it is told.

    Args:
        how: what to do.
        number: is given back.
    """
    if how == "hang":
        time.sleep(1000)
    if how == "flood":
        return "o" * 10**7
    if how == "raise":
        raise ValueError("boo \ud800 \x1b[31m \x00")
    if how == "exit":
        sys.exit(0)
    if how == "os._exit":
        os._exit(7)
    if how == "segfault":
        import ctypes

        ctypes.string_at(0)
    if how == "recurse":
        return behave(how)
    if how == "scribble":
        for descriptor in range(3, 64):
            try:
                os.write(descriptor, b"rubbish\n")
            except OSError:
                continue
    if how == "close":
        os.closerange(3, 64)
    special = {"bytes": b"4737", "object": object(), "nan": [float("nan")], "nothing": None}
    return special.get(how, f"{how} {number}")


def settings_of(name: str) -> dict[str, Any]:
    limits = {"timeout_seconds": TIMEOUT_SECONDS, "max_output_characters": LIMIT}
    return {"type": name, **limits, **SETTINGS.get(name, {})}


def config_of(name: str) -> Tool.Config:
    config = TOOLS.parse(settings_of(name))
    assert isinstance(config, Tool.Config)
    return config


@pytest.fixture(scope="module", params=NAMES)
def tool(request: pytest.FixtureRequest) -> Iterator[Tool]:
    built: Tool = create(config_of(request.param))
    built.prepare()
    yield built
    built.close()


def call(tool: Tool, arguments: dict[str, Json]) -> tuple[ToolCallStatus, str]:
    session = tool.open(seed=0)
    output = session.call(arguments)
    session.close()
    assert isinstance(output.text, str)
    output.text.encode()  # no lone surrogate: records are stored as UTF-8
    assert 0 < len(output.text) <= LIMIT
    return output.status, output.text


def test_there_are_tools_to_test() -> None:
    assert {"python", "calculator", "function", "flaky"} <= set(NAMES)


def test_a_good_call_gives_its_text(tool: Tool) -> None:
    arguments, text = GOOD[tool.config.type]
    assert call(tool, arguments) == (ToolCallStatus.OK, text)


def test_the_schema_is_json_schema_and_carries_the_name_by_which_the_tool_is_called(
    tool: Tool,
) -> None:
    schema = tool.schema()
    json.dumps(schema, allow_nan=False)
    assert schema["type"] == "function"
    assert schema["function"]["name"] == tool.config.called
    assert schema["function"]["description"]
    parameters = schema["function"]["parameters"]
    jsonschema.Draft202012Validator.check_schema(parameters)
    jsonschema.validate(GOOD[tool.config.type][0], parameters)


@pytest.mark.parametrize(
    ("name", "case"), [(name, case) for name, cases in MISBEHAVING.items() for case in cases]
)
def test_whatever_goes_wrong_is_a_status_and_the_next_call_works(name: str, case: str) -> None:
    arguments, status = MISBEHAVING[name][case]
    misused: Tool = create(config_of(name))
    started = time.monotonic()
    found, text = call(misused, arguments)
    assert found is status, text
    assert (
        time.monotonic() - started < 30
    )  # started, timed out and killed; not the 1000 s it asked for
    assert "\x1b" not in text
    good, expected = GOOD[name]
    assert call(misused, good) == (ToolCallStatus.OK, expected)
    misused.close()


@given(arguments=st.dictionaries(ARGUMENT_NAMES, JSON, max_size=3))
@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_any_json_arguments_give_an_answer(tool: Tool, arguments: dict[str, Json]) -> None:
    status, _ = call(tool, arguments)
    assert status is not ToolCallStatus.UNAVAILABLE
    if not set(arguments) & set(tool.schema()["function"]["parameters"]["properties"]):
        assert status is ToolCallStatus.BAD_ARGUMENTS


def test_equal_seeds_give_equal_answers(tool: Tool) -> None:
    arguments = GOOD[tool.config.type][0]
    answers = []
    for _ in range(2):
        session = tool.open(seed=5)
        answers.append([session.call(arguments) for _ in range(4)])
        session.close()
    assert answers[0] == answers[1]


def children() -> set[int]:
    """Ids of processes that this process started and has not reaped."""
    found: set[int] = set()
    for task in Path("/proc/self/task").iterdir():
        try:
            found.update(map(int, (task / "children").read_text().split()))
        except FileNotFoundError:  # the thread ended meanwhile
            continue
    return found


@pytest.mark.parametrize("name", NAMES)
def test_no_process_is_left_when_the_tool_is_closed(name: str) -> None:
    keeper()  # one for all sandboxes of a process, and as long as it
    before = children()
    used: Tool = create(config_of(name))
    used.prepare()
    session = used.open(seed=0)
    session.call(GOOD[name][0])
    session.close()
    used.close()
    used.close()
    deadline = time.monotonic() + 10
    while left := children() - before:
        assert time.monotonic() < deadline, f"left: {left}"
        time.sleep(0.02)


def test_a_closed_tool_says_that_it_cannot_be_had() -> None:
    for name in ("function", "python"):
        closed: Tool = create(config_of(name))
        closed.prepare()
        session = closed.open(seed=0)
        session.call(GOOD[name][0])
        session.close()
        closed.close()
        assert call_status(closed, name) is ToolCallStatus.UNAVAILABLE


def call_status(tool: Tool, name: str) -> ToolCallStatus:
    session = tool.open(seed=0)
    try:
        return session.call(GOOD[name][0]).status
    finally:
        session.close()


@pytest.mark.parametrize("name", NAMES)
def test_settings_survive_json_and_pickle(name: str) -> None:
    config = TOOLS.parse({**settings_of(name), "name": "mine"})
    assert TOOLS.parse(config.model_dump(mode="json")) == config
    assert pickle.loads(pickle.dumps(config)) == config
    assert isinstance(config, Tool.Config)
    assert config.called == "mine"
    with pytest.raises(ValueError, match="no_such_setting"):
        TOOLS.parse({**settings_of(name), "no_such_setting": 1})


def test_importing_and_configuring_tools_loads_nothing_heavy() -> None:
    code = (
        "from workers.rollout.tool import TOOLS\n"
        "for name in TOOLS.members(): TOOLS.resolve(name).Config.model_json_schema()"
    )
    assert loaded_by(code, HEAVY) == []
