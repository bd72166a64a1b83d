"""Reading what untrusted code sent: any bytes give a typed outcome, and only plain answers count."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from policies.base.records import Json
from workers.sandbox.outcome import last_lines, read_cell, read_replies, result_of
from workers.sandbox.raw_result import Raw
from workers.sandbox.settings import CallResult, SandboxResult, SandboxSettings, SandboxStatus

SETTINGS = SandboxSettings(output_kb=1, wall_seconds=2, cpu_seconds=2)
ENDED = SandboxResult(SandboxStatus.OK, "", "", 0.1, "landlock")
NAMES = ["aa", "bb"]


def replies(*lines: bytes, ended: SandboxResult = ENDED) -> list[CallResult]:
    return read_replies(b"".join(line + b"\n" for line in lines), NAMES, ended)


def statuses(*lines: bytes, ended: SandboxResult = ENDED) -> list[SandboxStatus]:
    return [result.status for result in replies(*lines, ended=ended)]


json_values: st.SearchStrategy[Json] = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.text(max_size=5)
    | st.floats(allow_nan=False, allow_infinity=False),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3)
    ),
    max_leaves=8,
)


@given(json_values)
def test_a_plain_value_arrives_as_it_was_sent(value: Json) -> None:
    line = json.dumps({"id": "aa", "value": value}).encode()
    (first, second) = replies(line)
    assert first.status is SandboxStatus.OK
    assert json.dumps(first.value) == json.dumps(value)
    assert second.status is SandboxStatus.RAISED


@given(st.binary(max_size=300))
def test_any_bytes_are_an_outcome_and_never_an_answer(noise: bytes) -> None:
    results = read_replies(noise, NAMES, ENDED)
    assert len(results) == 2
    assert all(result.status is not SandboxStatus.OK for result in results)


@given(st.binary(max_size=100))
def test_any_bytes_from_a_cell_are_an_outcome(noise: bytes) -> None:
    result = read_cell(Raw(control=bytearray(noise)), "aa", "landlock", SETTINGS)
    assert result.status is SandboxStatus.BAD_REPLY


@pytest.mark.parametrize(
    "line",
    [
        b'{"id": "aa", "value": NaN}',
        b'{"id": "aa", "value": Infinity}',
        b'{"id": "aa", "value": 1e999}',
        b'{"id": "aa", "value": 1, "value": 2}',
        b'{"id": "cc", "value": 1}',
        b'{"id": 1, "value": 1}',
        b'{"id": "aa", "value": 1, "passed": true}',
        b'{"id": "aa"}',
        b'["aa", 1]',
        b'{"id": "aa", "value": "\xff"}',
        b'{"id": "aa", "value": ' + b"[" * 90_000 + b"]" * 90_000 + b"}",
        b'{"id": "aa", "value": 1' + b"0" * 60_000 + b"}",
    ],
)
def test_what_is_not_strict_json_or_not_an_answer_spoils_every_call(line: bytes) -> None:
    assert statuses(line) == [SandboxStatus.BAD_REPLY] * 2


def test_two_answers_to_one_call_spoil_every_call() -> None:
    line = b'{"id": "aa", "value": 1}'
    assert statuses(line, line) == [SandboxStatus.BAD_REPLY] * 2


def test_a_value_too_deep_to_walk_is_no_answer() -> None:
    line = b'{"id": "aa", "value": ' + b"[" * 400 + b"]" * 400 + b"}"
    assert statuses(line, b'{"id": "bb", "value": 1}') == [
        SandboxStatus.BAD_REPLY,
        SandboxStatus.OK,
    ]


def test_a_call_that_was_never_answered_ended_as_the_process_did() -> None:
    ended = SandboxResult(SandboxStatus.WALL_LIMIT, "", "stopped after 2 s", 2.0, "bwrap")
    assert statuses(b'{"id": "aa", "value": 1}', ended=ended) == [
        SandboxStatus.OK,
        SandboxStatus.WALL_LIMIT,
    ]


def test_error_text_holds_nothing_that_no_file_can_hold() -> None:
    line = b'{"id": "aa", "raised": "\\ud800 oh"}'
    (first, _) = replies(line)
    assert first.error.encode("utf-8").decode() == "? oh"
    assert last_lines("a\n" * 100).count("a") == 20


@pytest.mark.parametrize(
    ("raw", "status"),
    [
        (Raw(exit_code=0), SandboxStatus.OK),
        (Raw(exit_code=1, stderr=bytearray(b"ValueError: x")), SandboxStatus.RAISED),
        (Raw(exit_code=1, stderr=bytearray(b"a\nMemoryError\n")), SandboxStatus.MEMORY_LIMIT),
        (Raw(exit_code=-11), SandboxStatus.KILLED),
        (Raw(exit_code=-9, cpu_seconds=2.0), SandboxStatus.CPU_LIMIT),
        (Raw(exit_code=-9, cpu_seconds=0.1), SandboxStatus.KILLED),
        (Raw(exit_code=-9, ending="wall"), SandboxStatus.WALL_LIMIT),
        (Raw(exit_code=-9, ending="flood"), SandboxStatus.OUTPUT_LIMIT),
        (Raw(exit_code=-9, ending="threads"), SandboxStatus.KILLED),
    ],
)
def test_each_way_to_end_has_its_status(raw: Raw, status: SandboxStatus) -> None:
    assert result_of(raw, "landlock", SETTINGS).status is status


def test_a_signal_that_bwrap_reports_as_an_exit_code_is_a_signal() -> None:
    assert result_of(Raw(exit_code=139), "bwrap", SETTINGS).status is SandboxStatus.KILLED
    assert result_of(Raw(exit_code=139), "landlock", SETTINGS).status is SandboxStatus.RAISED
    slow = Raw(exit_code=137, wall_seconds=2.1)
    assert result_of(slow, "bwrap", SETTINGS).status is SandboxStatus.CPU_LIMIT


def test_output_is_cut_at_its_limit_and_broken_text_is_replaced() -> None:
    result = result_of(Raw(exit_code=0, stdout=bytearray(b"\xff" * 5000)), "landlock", SETTINGS)
    assert result.stdout == "\ufffd" * 1024
