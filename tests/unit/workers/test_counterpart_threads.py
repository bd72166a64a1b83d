"""Calls that may block: answered as they finish, given up in time, and never more threads than promised."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import NoReturn

import pytest

from workers.rollout.multi_turn.thread_pool import CounterpartThreads, Finished


def wait_for(threads: CounterpartThreads, count: int) -> list[Finished]:
    found: list[Finished] = []
    while len(found) < count:
        found += threads.done(wait=True)
    return found


def partner_threads() -> set[threading.Thread]:
    return {t for t in threading.enumerate() if t.name == "pawl-counterpart"}


@pytest.fixture
def gate() -> Iterator[threading.Event]:
    """Opened at the end, so that threads that were left behind can go."""
    event = threading.Event()
    yield event
    event.set()


def test_a_slow_call_does_not_hold_up_a_fast_one(gate: threading.Event) -> None:
    threads = CounterpartThreads(2, timeout_seconds=60)
    threads.submit(0, gate.wait, "slow")
    threads.submit(1, lambda: "done", "fast")
    (first,) = wait_for(threads, 1)
    assert (first.key, first.value) == (1, "done")
    assert threads.pending == 1
    gate.set()
    assert [f.key for f in wait_for(threads, 1)] == [0]


def test_what_a_call_raises_is_its_answer() -> None:
    def leave() -> NoReturn:
        raise SystemExit(3)

    threads = CounterpartThreads(1, timeout_seconds=60)
    threads.submit(0, lambda: 1 // 0, "dividing")
    threads.submit(1, leave, "leaving")
    threads.submit(2, lambda: 5, "fine")
    first, second, third = wait_for(threads, 3)
    assert first.error is not None
    assert "dividing failed: ZeroDivisionError" in first.error
    assert second.error is not None
    assert third.value == 5
    threads.release()


def test_a_call_that_hangs_is_given_up_and_others_go_on(gate: threading.Event) -> None:
    threads = CounterpartThreads(1, timeout_seconds=0.1)
    threads.submit(0, gate.wait, "hanging")
    threads.submit(1, lambda: "fine", "next")
    found = {f.key: f for f in wait_for(threads, 2)}
    assert found[0].hung
    assert found[0].error == "hanging did not return within 0.1 s"
    assert found[1].value == "fine"
    threads.release()


def test_hanging_calls_take_twice_the_threads_at_most_and_then_the_rest_fails_at_once(
    gate: threading.Event,
) -> None:
    before = partner_threads()
    threads = CounterpartThreads(2, timeout_seconds=0.05)
    for key in range(20):
        threads.submit(key, gate.wait, f"call {key}")
    found = wait_for(threads, 20)
    assert all(f.error for f in found)
    assert sum(f.hung for f in found) == 4
    assert len(partner_threads() - before) == 4
    assert "held by calls that never returned" in str(found[-1].error)
    threads.submit(99, lambda: "too late", "one more")
    assert wait_for(threads, 1)[0].error is not None


def test_threads_that_come_back_may_be_replaced(gate: threading.Event) -> None:
    before = partner_threads()
    threads = CounterpartThreads(1, timeout_seconds=0.05)
    for key in range(2):
        threads.submit(key, gate.wait, "call")
    assert all(f.hung for f in wait_for(threads, 2))
    stuck = partner_threads() - before
    gate.set()
    for thread in stuck:
        thread.join(10)
    threads.submit(2, lambda: "fine", "call")
    assert wait_for(threads, 1)[0].value == "fine"
    threads.release()


def test_idle_threads_end_when_released() -> None:
    before = partner_threads()
    threads = CounterpartThreads(4, timeout_seconds=60)
    for key in range(8):
        threads.submit(key, lambda: None, "call")
    wait_for(threads, 8)
    ours = partner_threads() - before
    assert 0 < len(ours) <= 4
    threads.release()
    for thread in ours:
        thread.join(10)
    assert not any(thread.is_alive() for thread in ours)


def test_work_that_nobody_took_up_can_be_forgotten(gate: threading.Event) -> None:
    threads = CounterpartThreads(1, timeout_seconds=60)
    started = threading.Event()

    def first() -> bool:
        started.set()
        return gate.wait()

    threads.submit(0, first, "first")
    assert started.wait(10)
    made: list[int] = []
    threads.submit(1, lambda: made.append(1), "second")
    threads.forget_waiting()
    assert threads.pending == 1
    gate.set()
    assert [f.key for f in wait_for(threads, 1)] == [0]
    assert made == []
    assert threads.done(wait=True) == []
    threads.release()
