"""Rows that ask the same: a repeat agrees with what was said before, a conflict does not and is never taken for one."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest

from policies.base.errors import InputError
from tests.support.row_files import pasted, read, source_of


def asks(*answers: Any, **more: Any) -> list[dict[str, Any]]:
    return [{"prompt": "What is 3*8?", "answer": answer, **more} for answer in answers]


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_another_answer_to_the_same_question_is_refused_with_both_rows(
    tmp_path: Path, kind: str
) -> None:
    rows = [*asks(24), {"prompt": "What is 7*8?", "answer": 56}, *asks(25)]
    place = "rows.jsonl:{}" if kind == "jsonl" else "rows.parquet: row {}"
    with pytest.raises(InputError) as caught:
        read(tmp_path, rows, kind)
    message = str(caught.value)
    assert message.startswith("1 row of ")
    assert place.format(3) in message
    assert place.format(1) in message
    assert "the answer is 24 there and 25 here" in message
    kept = read(tmp_path, rows, kind, **pasted(message))
    assert [prompt.answer for prompt in kept] == [24, 56]
    dropped = read(tmp_path, rows, kind, conflicts="drop")
    assert [prompt.answer for prompt in dropped] == [56]


def test_a_setting_that_chooses_says_what_it_chose(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    source = source_of(tmp_path, asks(24, 25), conflicts="keep_first")
    with caplog.at_level(logging.WARNING):
        source.load()
    assert "contradict" in caplog.text
    assert "24 there and 25 here" in source.notes()[-1]
    with pytest.raises(InputError, match=r"every prompt of .* is left out") as caught:
        read(tmp_path, asks(24, 25), conflicts="drop")
    assert len(read(tmp_path, asks(24, 25), **pasted(str(caught.value)))) == 1


@pytest.mark.parametrize(
    "same", [(24, 24), (24, 24.0), (24, "24"), ("24", " 24 "), ([1, 2], [1, 2.0]), (None, None)]
)
def test_answers_that_mean_the_same_are_a_repeat(tmp_path: Path, same: tuple[Any, Any]) -> None:
    assert len(read(tmp_path, asks(*same))) == 1


@pytest.mark.parametrize("other", [("24", "42"), (24, None), (1, True), ("Yes", "No"), ([1], [2])])
def test_answers_that_do_not_are_a_conflict(tmp_path: Path, other: tuple[Any, Any]) -> None:
    with pytest.raises(InputError, match="contradict"):
        read(tmp_path, asks(*other))


def test_blanks_at_the_ends_make_no_other_question(tmp_path: Path) -> None:
    rows = [{"prompt": "7*8?", "answer": 56}, {"prompt": "7*8? \n", "answer": 58}]
    with pytest.raises(InputError, match="contradict"):
        read(tmp_path, rows)
    assert len(read(tmp_path, [rows[0], rows[1] | {"answer": 56}])) == 2


def test_metadata_that_the_config_names_counts(tmp_path: Path) -> None:
    rows = [*asks(24, tolerance=0), *asks(24, tolerance=5)]
    assert len(read(tmp_path, rows)) == 1
    with pytest.raises(InputError, match="tolerance is 0 there and 5 here"):
        read(tmp_path, rows, columns={"metadata": ["tolerance"]})


def test_numbers_of_rows_make_no_conflict_and_what_verl_hands_on_does(tmp_path: Path) -> None:
    def rows(**second: Any) -> list[dict[str, Any]]:
        return [
            {
                "data_source": "x",
                "prompt": [{"role": "user", "content": "7*8?"}],
                "reward_model": {"ground_truth": "56"},
                "extra_info": {"index": i, "tolerance": 0} | (second if i else {}),
            }
            for i in range(2)
        ]

    assert len(read(tmp_path, rows())) == 1
    with pytest.raises(InputError, match="extra_info is"):
        read(tmp_path, rows(tolerance=9))


def test_other_tools_make_another_prompt(tmp_path: Path) -> None:
    def offering(name: str) -> dict[str, Any]:
        return {"messages": [{"role": "user", "content": "Go."}], "tools": [{"name": name}]}

    assert len(read(tmp_path, [offering("a"), offering("b"), offering("a")])) == 2
