"""The parts of `code_tests` that need no sandbox: which code, which tests, what is equal."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from policies.base.component import create
from policies.base.errors import VerificationError
from policies.base.records import Json, Message, Prompt
from tests.contracts.test_verifiers import attempt
from workers.verify.verifier import VERIFIERS
from workers.verify.verifiers.code_tests import last_block, same_value

PYTHON = ("", "python")


def same(found: Json, expected: Json, **settings: Any) -> bool:
    return same_value(
        found, expected, **({"by_value": False, "absolute": 0.0, "relative": 0.0} | settings)
    )


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("no code", None),
        ("```python\nx = 1\n```", "x = 1"),
        ("first\n```\na\n```\nthen\n```python\nb\n```\nend", "b"),
        ("```python\na\n```\n```text\nb\n```", "a"),
        ("```python\nunfinished", "unfinished"),
        ("````python\n```\ninner\n```\n````", "```\ninner\n```"),
        ("~~~\nx\n~~~", "x"),
        ("```python\n\n```", None),
        ("```inline``` and more", None),
        ("  ```PYTHON\n  x\n  ```", "  x"),
    ],
)
def test_the_last_block_in_python_is_the_code(text: str, code: str | None) -> None:
    assert last_block(text, PYTHON) == code


@given(st.text(alphabet="`~ \npyx", max_size=80))
def test_any_text_has_code_or_has_none(text: str) -> None:
    found = last_block(text, PYTHON)
    assert found is None or found.strip()


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        (4, 4.0),
        (True, 1),
        (1, True),
        (0, False),
        ("1", 1),
        (None, False),
        ([], {}),
        ([1], [1, 2]),
        ({"a": 1}, {"a": 1, "b": 2}),
        ({"a": 1}, {"b": 1}),
        ([[1]], [[2]]),
        ("", None),
        (0.1, 0.2),
    ],
)
def test_values_that_differ_in_type_or_size_are_not_equal(found: Json, expected: Json) -> None:
    assert not same(found, expected)


@pytest.mark.parametrize(
    "value", [None, True, 0, -1.5, "", "é", [], {}, [1, [2, {"a": None}]], 10**40]
)
def test_a_value_equals_itself(value: Json) -> None:
    assert same(value, value)


def test_numbers_of_two_types_are_equal_only_when_asked_for() -> None:
    assert same([4], [4.0], by_value=True)
    assert not same([True], [1], by_value=True)


def test_tolerance_is_for_floats_only() -> None:
    assert same(0.1 + 0.2, 0.3, absolute=1e-9)
    assert same(1000.5, 1000.0, relative=1e-3)
    assert not same(0.1 + 0.2, 0.3)
    assert not same(5, 6, absolute=10)
    assert not same(10**400, 1.0, by_value=True, absolute=1.0)


PROMPT = Prompt(id="p", messages=(Message(role="user", content="?"),))


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (None, "cannot read those of prompt 'p'"),
        (56, "cannot read those"),
        ([], "there are none"),
        ([{"call": "f"}], "expected"),
        ([{"call": "f", "expected": 1, "stdout": ""}], "xtra"),
    ],
)
def test_tests_that_cannot_be_read_are_an_error_that_says_how_to_write_them(
    answer: Json, message: str
) -> None:
    verifier = create(VERIFIERS.parse("code_tests"))
    with pytest.raises(VerificationError, match=message) as raised:
        verifier.verify(PROMPT.model_copy(update={"answer": answer}), attempt("```\nx\n```"))
    assert 'give a list of {"call"' in str(raised.value)


def test_a_timeout_that_would_turn_slow_code_into_an_error_is_refused() -> None:
    with pytest.raises(ValueError, match="slow code would be an error instead of a 0"):
        VERIFIERS.parse({"type": "code_tests", "timeout_seconds": 10})
