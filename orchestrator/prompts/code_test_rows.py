"""Tests of programming tasks as APPS, TACO, CodeContests and LiveCodeBench write them, in the form of `code_tests`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from orchestrator.prompts.row_values import RowError, as_json, parsed, shown
from policies.base.records import Json

_CONTESTS = ("public_tests", "private_tests", "generated_tests")
_KEEP = "; leave the row out, or give tests in the form of code_tests (prompts.*.format: plain)"


def is_input_output(value: Any) -> bool:
    """Tell whether a value is APPS's {"inputs": [...], "outputs": [...]}, or its JSON text."""
    try:
        tests = parsed(value, "")
    except RowError:
        return False
    return isinstance(tests, Mapping) and "inputs" in tests and "outputs" in tests


def tests_of_input_output(value: Any, starter: Any, what: str) -> Json:
    """Tests from APPS's and TACO's `input_output`; with `fn_name` they call a function, else they run a program.

    Args:
        value: {"inputs", "outputs"[, "fn_name"]} or its JSON text.
        starter: the row's starter code; a class in it tells that the function is its method.
        what: where the value stands, for messages.

    Raises:
        RowError: there are no tests, or as many inputs as outputs there are not.
    """
    tests = parsed(value, what)
    if not is_input_output(tests):
        raise RowError(f"{what!r} must hold inputs and outputs, got {shown(value)}{_KEEP}")
    inputs, outputs, name = tests["inputs"], tests["outputs"], tests.get("fn_name")
    _check_lists(inputs, outputs, what)
    if not name:
        return _programs(inputs, outputs, what)
    if isinstance(starter, str) and "class Solution" in starter:
        name = f"Solution.{name}"
    # Tasks from Codewars wrap each expected value into a list of one; those from LeetCode do not.
    wrapped = all(isinstance(o, list) and len(o) == 1 for o in outputs)
    return as_json(
        [
            {"call": name, "arguments": _arguments(i, what), "expected": o[0] if wrapped else o}
            for i, o in zip(inputs, outputs, strict=True)
        ],
        what,
    )


def tests_of_contests(row: Mapping[str, Any]) -> Json:
    """All tests of a CodeContests row: public, private and generated ones.

    Raises:
        RowError: there are none, or they are of another form.
    """
    found: list[Json] = []
    for column in _CONTESTS:
        tests = parsed(row.get(column) or {}, column)
        if isinstance(tests, list):  # `datasets` writes a list of structs this way round
            tests = {key: [t.get(key) for t in tests] for key in ("input", "output")}
        if not isinstance(tests, Mapping):
            raise RowError(f"{column!r} must hold input and output, got {shown(tests)}{_KEEP}")
        inputs, outputs = tests.get("input") or [], tests.get("output") or []
        if inputs or outputs:
            _check_lists(inputs, outputs, column)
            found += _programs(inputs, outputs, column)
    if not found:
        raise RowError(f"none of {', '.join(_CONTESTS)} holds a test{_KEEP}")
    return found


def tests_of_cases(value: Any, starter: Any, function: Any, what: str) -> Json:
    """Tests from LiveCodeBench's list of {"input", "output", "testtype"}, or its JSON text.

    Raises:
        RowError: there are none, they are of another form, or call a function that the row does not name.
    """
    cases = parsed(value, what)
    if not isinstance(cases, list) or not cases or not all(isinstance(c, Mapping) for c in cases):
        raise RowError(f"{what!r} must be a list of input and output, got {shown(value)}{_KEEP}")
    if all(case.get("testtype") == "functional" for case in cases):
        if not isinstance(function, str):
            raise RowError(f"{what!r} calls a function, and metadata.func_name names none{_KEEP}")
        lines = {
            "inputs": [[parsed(x, what) for x in str(c["input"]).splitlines()] for c in cases],
            "outputs": [[parsed(c["output"], what)] for c in cases],
            "fn_name": function,
        }
        return tests_of_input_output(lines, starter, what)
    return _programs([c.get("input") for c in cases], [c.get("output") for c in cases], what)


def first_solution(value: Any) -> str | None:
    """The first reference program of a list, or of its JSON text; None where there is none that is Python source."""
    try:
        programs = parsed(value, "")
    except RowError:
        return None
    if isinstance(programs, list) and programs and isinstance(programs[0], str):
        return programs[0] if programs[0].strip() else None
    return None


def _check_lists(inputs: Any, outputs: Any, what: str) -> None:
    if not isinstance(inputs, list) or not isinstance(outputs, list) or not inputs:
        raise RowError(
            f"{what!r} must hold lists of inputs and outputs, got {shown(inputs)}{_KEEP}"
        )
    if len(inputs) != len(outputs):
        raise RowError(f"{what!r} has {len(inputs)} inputs and {len(outputs)} outputs{_KEEP}")


def _arguments(value: Any, what: str) -> list[Any]:
    if not isinstance(value, list):
        raise RowError(f"{what!r} must list the arguments of each call, got {shown(value)}{_KEEP}")
    return value


def _programs(inputs: list[Any], outputs: list[Any], what: str) -> list[Json]:
    return [
        {"stdin": _lines(i, what), "stdout": _lines(o, what)}
        for i, o in zip(inputs, outputs, strict=True)
    ]


def _lines(value: Any, what: str) -> str:
    if isinstance(value, list) and all(isinstance(line, str) for line in value):
        value = "\n".join(value)
    if not isinstance(value, str):
        raise RowError(
            f"{what!r} must hold the text of each input and output, got {shown(value)}{_KEEP}"
        )
    return value
