"""A plain function as a tool: what its schema says, which arguments reach it, and how its processes come and go."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import pytest

from policies.base.component import create
from policies.base.errors import ConfigurationError
from policies.base.records import Json, ToolCallStatus
from workers.rollout.function_tool.signature import ArgumentProblemsError, FunctionSignature
from workers.rollout.tool import TOOLS, Tool, ToolOutput

SOURCE = """
import os, subprocess, sys, threading, time

CALLS = []

def search(query: str, limit: int = 3) -> str:
    '''Searches the notes.'''
    return f"{limit} x {query}"

def pid(wait: float = 0.0) -> int:
    '''Who am I.'''
    time.sleep(wait)
    return os.getpid()

def secret(name: str) -> str:
    '''Reads the environment.'''
    return os.environ.get(name, "not there")

def fork(path: str) -> str:
    '''Starts a process and hangs.'''
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(1000)"])
    open(path, "w").write(f"{os.getpid()} {child.pid}")
    time.sleep(1000)

def loud() -> str:
    '''Prints.'''
    for _ in range(40):
        print("o" * 2**17)
        print("e" * 2**17, file=sys.stderr)
    return "done"

async def later(x: float) -> float:
    '''Asynchronous.'''
    return x * 2

def structured(kind: str) -> object:
    '''Returns what is asked for.'''
    return {"list": [1, {"a": None}], "tuple": (1, 2), "bool": True, "text": "\\u00e9", "set": {1}}[kind]

def vague(*words): ...
NUMBER = 7
"""


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "my_tools.py"
    path.write_text(SOURCE, encoding="utf-8")
    return path


def tool_of(path: Path, name: str, **given: Any) -> Tool:
    built: Tool = create(TOOLS.parse({"type": f"{path}:{name}", **given}))
    return built


@pytest.fixture
def search(source: Path) -> Iterator[Tool]:
    tool = tool_of(source, "search")
    yield tool
    tool.close()


def call(tool: Tool, **arguments: Json) -> ToolOutput:
    return tool.open(seed=0).call(arguments)


def example(
    query: str,
    limit: int = 3,
    unit: Literal["km", "mi"] | None = None,
    *,
    schema: dict[str, list[float]] | None = None,
    _x: bool = False,
) -> str:
    """Searches the notes
    and what belongs to them.

    Not this paragraph.

    Args:
        query: words to look for,
            in any order.
        limit (int): most notes.

    Returns:
        query: not this line.
    """
    return f"{query} {limit} {unit} {schema} {_x}"


def test_the_schema_comes_from_signature_hints_and_docstring() -> None:
    signature = FunctionSignature(example, "example")
    assert signature.description == "Searches the notes and what belongs to them."
    parameters = signature.parameters
    assert parameters["required"] == ["query"]
    assert parameters["additionalProperties"] is False
    properties = parameters["properties"]
    assert list(properties) == ["query", "limit", "unit", "schema", "_x"]
    assert properties["query"] == {
        "type": "string",
        "description": "words to look for, in any order.",
    }
    assert properties["limit"] == {"type": "integer", "default": 3, "description": "most notes."}
    assert properties["unit"]["anyOf"][0] == {"type": "string", "enum": ["km", "mi"]}
    assert properties["_x"] == {"type": "boolean", "default": False}
    assert "title" not in str(parameters)


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        ({}, "'query' is missing"),
        ({"query": 7}, "'query' is wrong: Input should be a valid string"),
        ({"query": None}, "'query' is wrong"),
        ({"query": "x", "limit": "3"}, "'limit' is wrong: Input should be a valid integer"),
        ({"query": "x", "limit": 2.5}, "'limit' is wrong"),
        ({"query": "x", "limit": True}, "'limit' is wrong"),
        ({"query": "x", "unit": "m"}, "'unit' is wrong: Input should be 'km' or 'mi'"),
        ({"query": "x", "schema": {"a": ["1"]}}, "'schema.a.0' is wrong"),
        ({"query": "x", "more": 1}, "'more' is unknown"),
        ({"query": "x", "p1": 1}, "'p1' is unknown"),
    ],
)
def test_arguments_that_do_not_fit_the_schema_are_named(
    arguments: dict[str, Json], problem: str
) -> None:
    with pytest.raises(ArgumentProblemsError) as caught:
        FunctionSignature(example, "example").checked(arguments)
    assert problem in str(caught.value)


def test_arguments_that_fit_reach_the_function_and_defaults_stay_its_own() -> None:
    checked = FunctionSignature(example, "example").checked
    assert checked({"query": "x"}) == {"query": "x"}
    given: dict[str, Json] = {"query": "x", "limit": 5, "schema": {"a": [1, 2.5]}, "_x": True}
    assert checked(given) == given
    assert example(**checked(given)) == "x 5 None {'a': [1.0, 2.5]} True"


def test_a_function_without_named_parameters_is_refused() -> None:
    def any_words(*words: str) -> str:
        return str(words)

    def by_place(word: str, /) -> str:
        return word

    def odd(thing: threading.Thread) -> str:
        return str(thing)

    for function in (any_words, by_place, odd):
        with pytest.raises(ConfigurationError, match="cannot be a tool"):
            FunctionSignature(function, "f")


def test_a_function_is_called_by_its_own_name_unless_told_otherwise(search: Tool) -> None:
    assert search.schema()["function"]["name"] == "search"
    assert call(search, query="x", limit=2) == ToolOutput("2 x x")
    assert search.config.model_copy(update={"name": "find"}).called == "find"


def test_what_is_json_is_shown_as_json(source: Path) -> None:
    tool = tool_of(source, "structured")
    shown = {kind: call(tool, kind=kind).text for kind in ("list", "tuple", "bool", "text")}
    assert shown == {"list": '[1, {"a": null}]', "tuple": "[1, 2]", "bool": "true", "text": "é"}
    assert call(tool, kind="set").status is ToolCallStatus.BAD_OUTPUT
    tool.close()


def test_an_asynchronous_function_is_awaited(source: Path) -> None:
    tool = tool_of(source, "later")
    assert call(tool, x=1.5).text == "3.0"
    tool.close()


def test_megabytes_of_print_do_not_disturb_the_answer(source: Path) -> None:
    tool = tool_of(source, "loud")
    assert call(tool) == ToolOutput("done")
    tool.close()


def test_no_secret_reaches_the_function(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "canary-4711")
    tool = tool_of(source, "secret")
    assert call(tool, name="HF_TOKEN").text == "not there"
    assert call(tool, name="PATH").text != "not there"
    tool.close()


@pytest.mark.parametrize(
    ("name", "error"),
    [
        ("vague", "cannot be given by name"),
        ("nothing", "has no 'nothing'"),
        ("NUMBER", "is not a function"),
    ],
)
def test_what_cannot_be_a_tool_is_refused_in_four_parts_before_the_first_call(
    source: Path, name: str, error: str
) -> None:
    config = {"type": "function", "function": f"{source}:{name}"}
    tool: Tool = create(TOOLS.parse(config))
    with pytest.raises(ConfigurationError, match=error) as caught:
        tool.prepare()
    tool.close()
    assert "Set by: rollout.tools[...].function. Fix: " in str(caught.value)


def test_a_module_that_hangs_at_import_is_bounded(tmp_path: Path) -> None:
    path = tmp_path / "slow.py"
    path.write_text("import time; time.sleep(1000)", encoding="utf-8")
    config = {"type": "function", "function": f"{path}:f", "start_timeout_seconds": 0.5}
    tool: Tool = create(TOOLS.parse(config))
    with pytest.raises(ConfigurationError, match=r"took more than 0\.5 s to start"):
        tool.prepare()
    assert call(tool).status is ToolCallStatus.UNAVAILABLE
    tool.close()


def test_calls_at_the_same_time_run_side_by_side_and_processes_are_used_again(
    source: Path,
) -> None:
    tool = tool_of(source, "pid", idle_processes=2)
    tool.prepare()
    found: list[str] = []
    threads = [
        threading.Thread(target=lambda: found.append(call(tool, wait=1.0).text)) for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(found)) == 3
    after = [call(tool).text for _ in range(4)]
    assert set(after) <= set(found)
    tool.close()


def is_running(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


def wait_until_gone(pids: list[int]) -> None:
    deadline = time.monotonic() + 10
    while left := [pid for pid in pids if is_running(pid)]:
        assert time.monotonic() < deadline, f"still there: {left}"
        time.sleep(0.01)


def test_a_call_that_hangs_is_killed_with_all_that_it_started(source: Path, tmp_path: Path) -> None:
    pids = tmp_path / "pids"
    tool = tool_of(source, "fork", timeout_seconds=2)
    started = time.monotonic()
    output = call(tool, path=str(pids))
    assert output == ToolOutput("Error: no answer within 2 s", ToolCallStatus.TIMED_OUT)
    assert time.monotonic() - started < 20
    wait_until_gone([int(pid) for pid in pids.read_text().split()])
    tool.close()


def test_closing_ends_a_call_that_is_under_way(source: Path, tmp_path: Path) -> None:
    pids = tmp_path / "pids"
    tool = tool_of(source, "fork", timeout_seconds=1000)
    found: list[ToolOutput] = []
    thread = threading.Thread(target=lambda: found.append(call(tool, path=str(pids))))
    thread.start()
    while not pids.exists() or len(pids.read_text().split()) < 2:
        time.sleep(0.01)
    tool.close()
    thread.join(10)
    assert found == [ToolOutput("Error: the tool was closed", ToolCallStatus.UNAVAILABLE)]
    wait_until_gone([int(pid) for pid in pids.read_text().split()])


def test_a_process_killed_from_outside_is_replaced(source: Path) -> None:
    tool = tool_of(source, "pid")
    os.kill(int(call(tool).text), signal.SIGKILL)
    lost = call(tool)
    assert lost.status is ToolCallStatus.FAILED
    assert "SIGKILL" in lost.text
    assert call(tool).status is ToolCallStatus.OK
    tool.close()
