"""The spool: what was told is on disk, whole, and read from where sending stopped."""

from __future__ import annotations

from pathlib import Path

from orchestrator.tracking.spool import FinishLine, SendLock, Spool, StartLine, TrackedRun

START = StartLine(at=1, run=TrackedRun(run_id="a1", name="q-1", experiment="q")).sealed()
FINISH = FinishLine(at=2, status="FINISHED", reason="").sealed()


def test_lines_are_read_back_from_any_offset(tmp_path: Path) -> None:
    spool = Spool(tmp_path)
    spool.append(START)
    spool.append(FINISH)
    (first, behind_first), (second, behind_second) = spool.read()
    assert (first, second) == (START, FINISH)
    assert [line for line, _ in spool.read(behind_first)] == [FINISH]
    assert behind_second == spool.size()


def test_the_saved_offset_survives_a_new_process(tmp_path: Path) -> None:
    spool = Spool(tmp_path)
    spool.append(START)
    spool.save_offset(spool.size())
    spool.append(FINISH)
    again = Spool(tmp_path)
    assert [line for line, _ in again.read(again.offset())] == [FINISH]
    assert again.left() == 1


def test_a_line_that_was_cut_off_is_dropped_and_the_next_is_whole(tmp_path: Path) -> None:
    spool = Spool(tmp_path)
    spool.append(START)
    with spool.path.open("ab") as handle:
        handle.write(b'{"op":"finish","at"')
    again = Spool(tmp_path)
    again.append(FINISH)
    assert [line for line, _ in again.read()] == [START, FINISH]


def test_a_reader_beside_the_writer_cuts_nothing_off(tmp_path: Path) -> None:
    Spool(tmp_path).path.write_bytes(b'{"op":"fin')
    assert list(Spool(tmp_path, writes=False).read()) == []
    assert (tmp_path / "spool.jsonl").read_bytes() == b'{"op":"fin'


def test_a_damaged_line_in_the_middle_is_told_and_passed_over(tmp_path: Path) -> None:
    spool = Spool(tmp_path)
    spool.append(START)
    with spool.path.open("ab") as handle:
        handle.write(b"rubbish\n")
    spool.append(FINISH)
    assert [line for line, _ in spool.read()] == [START, None, FINISH]


def test_an_offset_that_is_lost_or_foreign_sends_everything_again(tmp_path: Path) -> None:
    spool = Spool(tmp_path)
    spool.append(START)
    for content in ("", "{", '{"offset": "x"}', '{"offset": 999999}', '{"offset": -1}', "[]"):
        spool.offset_path.write_text(content, encoding="utf-8")
        assert spool.offset() == 0


def test_only_one_sender_holds_the_lock(tmp_path: Path) -> None:
    first, second = SendLock(tmp_path), SendLock(tmp_path)
    assert first.acquire()
    assert not second.acquire()
    first.release()
    assert second.acquire()
    second.release()
