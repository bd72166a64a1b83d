"""Answers are read strictly: one last line, on the scale, and nothing that contradicts it."""

from __future__ import annotations

import pytest

from policies.base.errors import JudgeError
from workers.judge.parse import cleaned, read_score, read_winner


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("Winner: A", 1.0),
        ("Because it is right.\nWinner: B\n\n", 0.0),
        ("winner: Tie.", 0.5),
        ("Good.\r\n**Winner:** A", 1.0),
        ("**Winner: B**", 0.0),
        ("Winner: A\nOn reflection, the same.\nWinner: a", 1.0),
        ("<think>Winner: B seems so.\nWinner: B</think>\nWinner: A", 1.0),
    ],
)
def test_the_last_line_names_the_winner(text: str, value: float) -> None:
    assert read_winner(text) == value


@pytest.mark.parametrize(
    "text",
    [
        "",
        "I cannot compare these.",
        "Winner: A\nWinner: B",
        "Winner: A\nbut that is not my last word",
        "Winner: neither",
        "Winner: A or B",
        "Winner:",
        "I think the Winner: A",
        "Winner: C\nWinner: A",
        "<think>Winner: A\nWinner: A",
        "Attempt A wins",
    ],
)
def test_anything_but_one_last_line_is_an_error_and_no_winner(text: str) -> None:
    with pytest.raises(JudgeError, match="unreadable answer"):
        read_winner(text)


@pytest.mark.parametrize(
    ("text", "value"),
    [("Score: 7", 7.0), ("Fine.\n**Score: 8.5**", 8.5), ("Score: 9/10", 9.0), ("score: 1.", 1.0)],
)
def test_the_last_line_holds_the_score(text: str, value: float) -> None:
    assert read_score(text, low=1, high=10) == value


@pytest.mark.parametrize(
    "text",
    [
        "Score: 11",
        "Score: 0",
        "Score: -3",
        "Score: 3\nScore: 4",
        "Score: seven",
        "Score: nan",
        "Score: 1e3",
        "Score: 4/5",
        "Score: 5 or 6",
        "7",
        "Score: 7\nThank you",
        "Score: " + "9" * 5_000,
    ],
)
def test_a_score_off_the_scale_or_unclear_is_an_error(text: str) -> None:
    with pytest.raises(JudgeError, match="unreadable answer"):
        read_score(text, low=1, high=10)


def test_kept_text_is_short_and_free_of_control_characters_and_broken_unicode() -> None:
    assert cleaned("a\x1b[31mb\x00\ud800\n") == "a[31mb?\n"
    assert len(cleaned("x" * 5_000)) == 2_000
