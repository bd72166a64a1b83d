"""The journal: finished phases survive, a torn last line is dropped, damage is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from orchestrator.runs.journal import Journal
from orchestrator.runs.phases import Drawn, Phase
from policies.base.errors import CorruptStateError
from policies.base.records import RoundResult, RoundStatus

DRAWN = Drawn(num_prompts=4, num_shards=2, digest="d")


def result(index: int) -> RoundResult:
    return RoundResult(
        round=index, status=RoundStatus.IMPROVED, before=0, after=index, reference="version 0"
    )


def test_a_finished_phase_is_found_after_reopening(tmp_path: Path) -> None:
    Journal(tmp_path / "j").append(1, Phase.DRAW, DRAWN)
    again = Journal(tmp_path / "j")
    assert again.find(1, Phase.DRAW, Drawn) == DRAWN
    assert again.find(1, Phase.TRAIN, Drawn) is None
    assert again.find(2, Phase.DRAW, Drawn) is None


def test_the_next_round_follows_the_last_accepted_one(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "j")
    assert journal.next_round() == 0
    journal.append(0, Phase.ACCEPT, result(0))
    journal.append(1, Phase.DRAW, DRAWN)
    assert journal.next_round() == 1
    journal.append(1, Phase.ACCEPT, result(1))
    assert Journal(tmp_path / "j").next_round() == 2
    assert [r.round for r in journal.results()] == [0, 1]


def test_a_line_cut_off_by_a_crash_is_dropped_and_writing_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "j"
    Journal(path).append(1, Phase.DRAW, DRAWN)
    whole = path.read_bytes()
    path.write_bytes(whole + whole[: len(whole) // 2])
    journal = Journal(path)
    assert len(journal.entries) == 1
    journal.append(1, Phase.ACCEPT, result(1))
    assert len(Journal(path).entries) == 2


def test_damage_in_the_middle_is_refused_with_its_line(tmp_path: Path) -> None:
    path = tmp_path / "j"
    journal = Journal(path)
    journal.append(1, Phase.DRAW, DRAWN)
    journal.append(1, Phase.ACCEPT, result(1))
    lines = path.read_bytes().split(b"\n")
    path.write_bytes(b"\n".join([b"{oops", *lines[1:]]))
    with pytest.raises(CorruptStateError, match="j:1 cannot be read"):
        Journal(path)


def three_lines(path: Path) -> list[bytes]:
    journal = Journal(path)
    for index in range(3):
        journal.append(index, Phase.ACCEPT, result(index))
    return path.read_bytes().splitlines(keepends=True)


def test_a_line_that_was_changed_removed_or_moved_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "j"
    first, second, third = three_lines(path)
    assert len(Journal(path).entries) == 3
    changed = second.replace(b'"after":1', b'"after":7')
    assert changed != second
    for number, lines in (
        (2, [first, changed, third]),
        (2, [first, third]),
        (1, [second, first, third]),
        (1, [second, third]),
        (4, [first, second, third, second]),
    ):
        path.write_bytes(b"".join(lines))
        with pytest.raises(CorruptStateError, match=f"j:{number} cannot be read.*seal"):
            Journal(path)


def test_a_journal_by_an_older_pawl_without_seals_is_read_and_continued(tmp_path: Path) -> None:
    path = tmp_path / "j"
    lines = [json.loads(line) for line in three_lines(path)]
    old = [{k: v for k, v in line.items() if k != "seal"} for line in lines]
    path.write_text("".join(json.dumps(line) + "\n" for line in old))
    Journal(path).append(3, Phase.ACCEPT, result(3))
    assert [r.round for r in Journal(path).results()] == [0, 1, 2, 3]


def test_journals_hold_no_clock() -> None:
    import inspect

    from orchestrator.runs import phases

    source = inspect.getsource(phases)
    assert "seconds" not in source
    assert "time" not in source.replace("times", "")
