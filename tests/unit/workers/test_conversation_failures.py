"""What goes wrong in a conversation, on whose side, and what becomes of counterpart, engine and threads."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest

from policies.base.errors import RolloutError
from policies.base.records import (
    Ending,
    Message,
    Prompt,
    ToolCall,
    ToolCallStatus,
    TrajectoryStatus,
)
from tests.support.scripted_conversation import DONE, ReplyScript, WithScript, hello, run, until
from tests.support.scripted_engine import ScriptedEngine
from workers.rollout.engine import Generation
from workers.rollout.engines.fake import FakeChat
from workers.rollout.multi_turn.strategy import ConversationStrategy, Counterpart, Outcome, Reply

FAILURES: dict[str, tuple[ReplyScript, Callable[[], Any], str]] = {
    "reply raises": (lambda text, turn: 1 // 0, Outcome, "ZeroDivisionError"),
    "reply is no Reply": (lambda text, turn: "6", Outcome, "not str"),
    "reply has no Messages": (lambda t, n: Reply(messages=("6",)), Outcome, "not of str"),  # type: ignore[arg-type]
    "reply gives up": (lambda text, turn: Reply(ending=Ending.FAILED), Outcome, "gave up"),
    "outcome raises": (until(1), lambda: 1 // 0, "ZeroDivisionError"),
    "outcome is no Outcome": (until(1), lambda: 0.5, "not float"),
    "outcome is out of range": (until(1), lambda: Outcome(score=2.0), "outcome is unusable"),
    "graded turn is none": (until(1), lambda: Outcome(graded_turn=1), "turn 1 is to be graded"),
}


@pytest.mark.parametrize("name", FAILURES)
def test_what_a_partner_does_wrong_is_an_error_of_its_trajectory_alone(name: str) -> None:
    reply, outcome, expected = FAILURES[name]
    strategy = WithScript(reply, outcome)
    healthy = WithScript(until(1))
    strategy.counterpart = lambda prompt, seed: (  # type: ignore[method-assign]
        WithScript.counterpart(strategy if prompt.id == "p1" else healthy, prompt, seed)
    )
    good, bad, other = run(strategy, prompts=3)
    assert good.status is other.status is TrajectoryStatus.COMPLETE
    assert bad.status is TrajectoryStatus.ERROR
    assert bad.ending is Ending.FAILED
    assert expected in str(bad.error)
    assert bad.outcome is None
    assert [t.text for t in bad.turns if t.role == "policy"] == ["hello"], "what was said is kept"
    assert strategy.asked["p1"].count("close") == 1


def test_a_tool_that_we_could_not_provide_is_never_a_wrong_answer() -> None:
    call = ToolCall(tool="python", status=ToolCallStatus.UNAVAILABLE)
    message = Message(role="user", content="no sandbox here")
    strategy = WithScript(lambda text, turn: Reply(messages=(message,), calls=(call,)))
    (trajectory,) = run(strategy)
    assert trajectory.status is TrajectoryStatus.ERROR
    assert "tool 'python' is unavailable: no sandbox here" in str(trajectory.error)
    assert trajectory.turns[-1].calls == (call,)
    assert strategy.asked["p0"] == ["reply 0", "close"]


class Opening(ConversationStrategy):
    """A counterpart whose opening is given."""

    opening: Any

    def counterpart(self, prompt: Prompt, seed: int) -> Counterpart:
        strategy = self

        class Opened(Counterpart):
            def opening(self, prompt: Prompt) -> tuple[Message, ...]:
                found: tuple[Message, ...] = strategy.opening()
                return found

            def reply(self, text: str, turn: int) -> Reply:
                return DONE

        return Opened()


def test_an_opening_belongs_to_the_prompt_and_one_that_fails_is_an_error() -> None:
    strategy = Opening(Opening.Config(type="opening"))
    strategy.opening = lambda: (Message(role="user", content="7 stones"),)
    (trajectory,) = run(strategy)
    assert FakeChat().decode(trajectory.prompt_token_ids).endswith("7 stones</user><assistant>")
    assert trajectory.opening == (Message(role="user", content="7 stones"),), "kept for people"
    for wrong in (lambda: 1 // 0, lambda: None, lambda: ("7 stones",)):
        strategy.opening = wrong
        (failed,) = run(strategy)
        assert failed.status is TrajectoryStatus.ERROR
        assert failed.turns == ()
        assert failed.opening == ()


def test_a_partner_that_hangs_is_given_up_and_closed_while_it_hangs() -> None:
    gate = threading.Event()
    strategy = WithScript(
        lambda text, turn: gate.wait() and DONE, partner_timeout_seconds=0.1, max_waiting=1
    )
    first, second = run(strategy, samples=2)
    for each in (first, second):
        assert each.status is TrajectoryStatus.ERROR
        assert "did not return within 0.1 s" in str(each.error)
    assert strategy.asked["p0"].count("close") == 2
    gate.set()


def test_a_partner_that_is_made_too_late_is_closed_when_it_comes() -> None:
    gate, closed = threading.Event(), threading.Event()

    class Late(Counterpart):
        def close(self) -> None:
            closed.set()

    class Slow(ConversationStrategy):
        def counterpart(self, prompt: Prompt, seed: int) -> Counterpart:
            gate.wait()
            return Late()

    (trajectory,) = run(Slow(Slow.Config(type="slow", partner_timeout_seconds=0.05)))
    assert "opening the conversation did not return" in str(trajectory.error)
    assert not closed.is_set()
    gate.set()
    assert closed.wait(10)


def test_an_error_while_closing_is_logged_and_changes_nothing(
    caplog: pytest.LogCaptureFixture,
) -> None:
    class Sticky(Counterpart):
        def reply(self, text: str, turn: int) -> Reply:
            return DONE

        def outcome(self) -> Outcome:
            return Outcome(score=1.0)

        def close(self) -> None:
            raise OSError("stuck")

    class WithSticky(ConversationStrategy):
        def counterpart(self, prompt: Prompt, seed: int) -> Counterpart:
            return Sticky()

    (trajectory,) = run(WithSticky(WithSticky.Config(type="sticky")))
    assert trajectory.outcome == 1.0
    assert "stuck" in caplog.text


class Breaking(ScriptedEngine):
    """Fails once six requests are under way."""

    def advance(self) -> list[tuple[int, Generation]]:
        if len(self._queue) < 6:
            return []
        raise RolloutError("out of memory")


def test_when_the_engine_fails_every_partner_is_closed_and_nothing_stays_in_the_engine() -> None:
    engine = Breaking(FakeChat(), hello)
    strategy = WithScript(until(2))
    with pytest.raises(RolloutError, match="out of memory"):
        run(strategy, engine, prompts=3, samples=2)
    assert list(strategy.asked.values()) == [["close", "close"]] * 3
    assert ScriptedEngine.advance(engine) == [], "the next job begins with an idle engine"
