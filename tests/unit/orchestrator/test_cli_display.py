"""What a person sees while a run goes on."""

from __future__ import annotations

import io
from typing import Any

import pytest
from rich.console import Console

from orchestrator.inspect.views.display import (
    LiveProgress,
    PlainLines,
    describe,
    observers_for,
    rounds_table,
)
from orchestrator.runs.events import Event, EventKind
from policies.base.plain_text import duration, number, one_line, plain_text
from policies.base.records import RoundResult, RoundStatus


def event(
    kind: EventKind, *, round_index: int | None = 1, phase: str | None = None, **detail: Any
) -> Event:
    return Event(
        at="2026-11-21T09:00:00+00:00", kind=kind, round=round_index, phase=phase, detail=detail
    )


ROUND = [
    event(EventKind.RUN_STARTED, round_index=None, rounds=4, resumed=False),
    event(EventKind.WORKERS_STARTING, round_index=None),
    event(EventKind.WORKERS_READY, round_index=None, seconds=8.2),
    event(EventKind.PHASE_STARTED, phase="collect", shards=2, shards_total=2),
    event(EventKind.SHARD_STAGE_FINISHED, phase="collect", shard=0, stage="rollout", tokens=640),
    event(EventKind.SHARD_STAGE_FINISHED, phase="collect", shard=0, stage="prefer"),
    event(EventKind.PHASE_FINISHED, phase="collect", seconds=20.5, examples=56),
    event(EventKind.PHASE_STARTED, phase="train"),
    event(EventKind.TRAINING_STEP, phase="train", step=3, steps=7),
    event(EventKind.PHASE_FINISHED, phase="train", seconds=47.1),
    event(EventKind.WARNING, message="a verifier hung \x1b[2J"),
    event(
        EventKind.ROUND_FINISHED, result={"status": "improved", "metrics": {"eval/pass@1": 0.39}}
    ),
    event(EventKind.RUN_FINISHED, round_index=None),
]


def test_plain_lines_are_one_per_phase_without_control_codes() -> None:
    stream = io.StringIO()
    observer = PlainLines(stream)
    for each in ROUND:
        observer(each)
    lines = stream.getvalue().splitlines()
    assert "\x1b" not in stream.getvalue()
    assert len(lines) == 8  # started, starting, ready, two phases, a warning, the round, finished
    assert "round 1  collect" in lines[3]
    assert "20.5 s  examples 56" in lines[3]
    assert "improved  eval/pass@1 0.39" in lines[6]


def test_the_observer_fits_where_the_output_goes() -> None:
    pipe = Console(file=io.StringIO())
    terminal = Console(file=io.StringIO(), force_terminal=True)
    assert isinstance(observers_for(pipe)[0], PlainLines)
    assert isinstance(observers_for(terminal)[0], LiveProgress)


def test_live_progress_shows_shards_tokens_and_steps_and_keeps_a_line_per_phase() -> None:
    screen = io.StringIO()
    observer = LiveProgress(Console(file=screen, force_terminal=True, width=160))
    facts: list[str] = []
    for each in ROUND:
        observer(each)
        facts += [t.fields["facts"] for t in observer._progress.tasks]
    observer.stop()
    assert any("0/2 shards, " in f and "tokens/s" in f for f in facts)
    assert any("1/2 shards" in f and "left" in f for f in facts)
    assert any("3/7 steps" in f and "left" in f for f in facts)
    assert "round 1  collect" in screen.getvalue()
    assert observer._progress.tasks == []


def test_progress_copes_with_events_out_of_order() -> None:
    observer = LiveProgress(Console(file=io.StringIO(), force_terminal=True))
    for each in reversed(ROUND):
        observer(each)
    observer.stop()
    observer.stop()
    assert observer._progress.tasks == []


def test_every_kind_of_event_can_be_described() -> None:
    for kind in EventKind:
        assert isinstance(describe(event(kind)), (str, type(None)))


def test_foreign_text_loses_what_can_steer_a_terminal() -> None:
    assert plain_text("a\x1b[31mb\x07\u202ec\r\nd\x9b") == "a[31mbc\nd"
    assert one_line("a\nb\tc " * 50, 20) == "a b c a b c a b c..."


@pytest.mark.parametrize(
    ("seconds", "text"), [(8.25, "8.2 s"), (245, "4 min 05 s"), (7800, "2 h 10 min")]
)
def test_durations_are_said_for_people(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_numbers_are_said_for_people() -> None:
    assert [number(v) for v in (1.0, 0.123456, 3, "x", None)] == ["1", "0.1235", "3", "x", "None"]


def test_the_table_has_a_row_per_round_and_the_widest_pass_at_k() -> None:
    results = [
        RoundResult(
            round=0,
            status=RoundStatus.UNTRAINED,
            before=0,
            after=0,
            reference="none",
            metrics={
                "eval/pass@1": 0.29,
                "eval/pass@8": 0.875,
                "eval/pass@2": 0.4,
                "eval/length_tokens": 38.0,
            },
        ),
        RoundResult(
            round=1,
            status=RoundStatus.SKIPPED,
            before=0,
            after=0,
            reference="none",
            reason="no examples",
        ),
    ]
    screen = io.StringIO()
    Console(file=screen, width=200).print(rounds_table(results, {0: {"evaluate": 8.1}}))
    heading, first, second = screen.getvalue().splitlines()
    assert heading.split() == [
        "round",
        "status",
        "version",
        "pass@1",
        "pass@8",
        "tokens",
        "evaluate",
        "s",
    ]
    assert first.split() == ["0", "untrained", "0", "0.29", "0.875", "38", "8.1"]
    assert second.split() == ["1", "skipped", "0", "-", "-", "-", "-"]
