"""Conversations of policy and counterpart: how they end, what is recorded, and that none waits for another."""

from __future__ import annotations

import threading

import pytest

from policies.base.errors import RolloutError
from policies.base.records import (
    Ending,
    Message,
    Span,
    ToolCall,
    ToolCallStatus,
    TrajectoryStatus,
)
from tests.support.scripted_conversation import DONE, NEXT, WithScript, hello, run, until
from tests.support.scripted_engine import ScriptedEngine
from workers.rollout.engine import Generation, GenerationRequest
from workers.rollout.engines.fake import TERMINATOR, FakeChat
from workers.rollout.multi_turn.strategy import Outcome, Reply


def test_turns_alternate_and_every_request_is_all_that_came_before() -> None:
    engine = ScriptedEngine(FakeChat(), hello)
    (trajectory,) = run(WithScript(until(3)), engine)
    assert [t.role for t in trajectory.turns] == ["policy", "observation"] * 2 + ["policy"]
    assert trajectory.ending is Ending.ANSWERED
    assert trajectory.status is TrajectoryStatus.COMPLETE
    requests = [request for request, _ in engine.heard]
    assert requests[0].prompt_token_ids == trajectory.prompt_token_ids
    for n, request in enumerate(requests):
        start = trajectory.start_of_turn(2 * n)
        assert request.prompt_token_ids == trajectory.token_ids[:start]
    text = FakeChat().decode(trajectory.token_ids)
    assert text == "<user>go</user><assistant>hello<user>next</user><assistant>" * 1 + (
        "hello<user>next</user><assistant>hello"
    )


def test_every_turn_has_a_seed_of_its_own_and_so_has_every_partner() -> None:
    engine = ScriptedEngine(FakeChat(), hello)
    strategy = WithScript(until(2))
    run(strategy, engine, prompts=2, samples=3)
    assert len({request.seed for request, _ in engine.heard}) == 12
    assert len(set(strategy.seeds)) == 6
    again = WithScript(until(2))
    run(again, prompts=2, samples=3)
    assert sorted(again.seeds) == sorted(strategy.seeds)


def test_a_partner_is_asked_after_the_last_turn_too_and_its_outcome_counts() -> None:
    """The last move of a game counts although there is no further turn."""
    strategy = WithScript(lambda text, turn: NEXT, lambda: Outcome(score=0.25), max_turns=2)
    (trajectory,) = run(strategy)
    assert strategy.asked["p0"] == ["reply 0", "reply 1", "outcome", "close"]
    assert trajectory.ending is Ending.TURN_LIMIT
    assert trajectory.status is TrajectoryStatus.TRUNCATED
    assert trajectory.outcome == 0.25


def test_an_observation_that_no_turn_follows_is_recorded_without_tokens() -> None:
    call = ToolCall(tool="t", status=ToolCallStatus.OK)
    reply = Reply(messages=NEXT.messages, calls=(call,))
    (trajectory,) = run(WithScript(lambda text, turn: reply, max_turns=2))
    last = trajectory.turns[-1]
    assert (last.role, last.text, last.calls, last.token_ids) == (
        "observation",
        "next",
        (call,),
        (),
    )
    assert trajectory.turns[1].token_ids
    assert trajectory.completion == "hello"


def test_an_episode_ends_when_the_environment_says_so() -> None:
    over = Reply(ending=Ending.ENVIRONMENT)
    (trajectory,) = run(WithScript(lambda text, turn: over, lambda: Outcome(score=1.0)))
    assert trajectory.ending is Ending.ENVIRONMENT
    assert trajectory.status is TrajectoryStatus.COMPLETE
    assert trajectory.outcome == 1.0


def test_a_turn_without_an_observation_is_the_answer() -> None:
    (trajectory,) = run(WithScript(lambda text, turn: Reply()))
    assert trajectory.ending is Ending.ANSWERED
    assert len(trajectory.turns) == 1


@pytest.mark.parametrize(("graded", "expected"), [(0, Span(turn=0, start=0, end=6)), (1, None)])
def test_the_turn_that_the_partner_names_is_the_one_to_grade(
    graded: int, expected: Span | None
) -> None:
    (trajectory,) = run(WithScript(until(2), lambda: Outcome(graded_turn=graded)))
    assert trajectory.graded == expected


def test_a_turn_cut_by_its_budget_ends_the_trajectory_or_is_answered_as_told() -> None:
    (ended,) = run(WithScript(until(2)), max_tokens=3)
    assert ended.ending is Ending.TOKEN_LIMIT
    assert [t.text for t in ended.turns] == ["hel"]
    (answered,) = run(WithScript(until(2), cut_turns="answer"), max_tokens=3)
    assert [t.text for t in answered.turns] == ["hel", "next", "hel"]
    assert answered.turns[1].token_ids[0] == TERMINATOR, "the template's, and masked"
    assert answered.ending is Ending.TOKEN_LIMIT, "a cut answer is never complete"


def test_the_last_turn_gets_what_is_left_of_the_trajectory() -> None:
    engine = ScriptedEngine(FakeChat(), hello)
    observed = len(b"<user>next</user><assistant>")
    strategy = WithScript(until(9), max_trajectory_tokens=6 + observed + 3, cut_turns="answer")
    (trajectory,) = run(strategy, engine)
    assert [request.sampling.max_tokens for request, _ in engine.heard] == [37, 3]
    assert trajectory.ending is Ending.TOKEN_LIMIT
    assert trajectory.status is TrajectoryStatus.TRUNCATED
    assert len(trajectory.token_ids) - len(trajectory.prompt_token_ids) == 6 + observed + 3


def test_an_observation_that_leaves_no_room_for_a_turn_ends_the_trajectory() -> None:
    engine = ScriptedEngine(FakeChat(), hello)
    (trajectory,) = run(WithScript(until(9), max_trajectory_tokens=20), engine)
    assert trajectory.ending is Ending.TOKEN_LIMIT
    assert len(engine.heard) == 1
    assert len(trajectory.token_ids) - len(trajectory.prompt_token_ids) <= 20


def test_nothing_longer_than_the_context_reaches_the_engine() -> None:
    engine = ScriptedEngine(FakeChat(), hello)
    engine.max_context = 80
    (trajectory,) = run(WithScript(until(9)), engine)
    for request, _ in engine.heard:
        assert len(request.prompt_token_ids) + request.sampling.max_tokens <= 80
    assert trajectory.ending is Ending.TOKEN_LIMIT
    (too_long,) = run(WithScript(until(9)), engine, message=Message(role="user", content="x" * 99))
    assert too_long.status is TrajectoryStatus.ERROR
    assert "the engine takes 80" in str(too_long.error)


def test_a_trajectory_takes_its_next_turn_while_another_waits_for_its_tool() -> None:
    """The slow tool returns only when the other trajectory has had its second turn: a barrier would never end.

    Nor may the loop sit and wait for the tool while the engine, which needs several steps, has work.
    """
    second_turn = threading.Event()
    order: list[str] = []

    def reply(text: str, turn: int) -> Reply:
        return NEXT if turn == 0 else DONE

    def slow(text: str, turn: int) -> Reply:
        if turn == 0 and not second_turn.wait(20):
            raise RolloutError("the other trajectory was made to wait")
        return reply(text, turn)

    strategy = WithScript(reply)
    patient = WithScript(slow)
    strategy.counterpart = lambda prompt, seed: (  # type: ignore[method-assign]
        WithScript.counterpart(patient if prompt.id == "p0" else strategy, prompt, seed)
    )

    def script(request: GenerationRequest) -> Generation:
        turn = request.prompt_token_ids.count(TERMINATOR)
        order.append(f"turn {turn}")
        if turn == 1:
            second_turn.set()
        return hello(request)

    found = run(strategy, ScriptedEngine(FakeChat(), script, steps=5), prompts=2)
    assert [t.error for t in found] == [None, None]
    assert [t.prompt_id for t in found] == ["p0", "p1"], "in the order of the prompts all the same"
    assert sorted(order) == ["turn 0", "turn 0", "turn 1", "turn 1"]


def test_no_more_partners_work_at_a_time_than_allowed() -> None:
    lock = threading.Lock()
    now, most = 0, 0

    def reply(text: str, turn: int) -> Reply:
        nonlocal now, most
        with lock:
            now += 1
            most = max(most, now)
        threading.Event().wait(0.002)
        with lock:
            now -= 1
        return NEXT if turn == 0 else DONE

    found = run(WithScript(reply, max_waiting=3), prompts=12)
    assert all(t.ending is Ending.ANSWERED for t in found)
    assert 1 <= most <= 3


def test_a_used_strategy_keeps_no_threads() -> None:
    before = set(threading.enumerate())
    run(WithScript(until(2)), prompts=8)
    for thread in set(threading.enumerate()) - before:
        thread.join(10)
        assert not thread.is_alive()
