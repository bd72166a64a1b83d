"""The loop behind `ConversationStrategy`: every trajectory of a shard under way at once, none waiting for another.

Partners answer in threads while the engine samples; engine and records are touched by this loop alone.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial
from typing import Any, Protocol, cast

from policies.base.errors import PawlError, RolloutError, boundary
from policies.base.records import (
    Ending,
    Message,
    Prompt,
    Span,
    StopReason,
    ToolCallStatus,
    Trajectory,
    TrajectoryStatus,
    Turn,
)
from policies.base.seeds import derive_seed
from workers.cluster.heartbeat import report_progress
from workers.rollout.chat.shown_calls import check_shown
from workers.rollout.chat.thought_marks import spoken_text
from workers.rollout.chat.transcript import Transcript
from workers.rollout.engine import Generation, GenerationRequest, RolloutEngine
from workers.rollout.multi_turn.conversation import Conversation
from workers.rollout.multi_turn.counterpart import Counterpart, Outcome, Reply
from workers.rollout.multi_turn.settings import ConversationSettings
from workers.rollout.multi_turn.thread_pool import CounterpartThreads, Finished
from workers.rollout.strategy import RolloutJob

logger = logging.getLogger(__name__)

_STATUS = {
    Ending.ANSWERED: TrajectoryStatus.COMPLETE,
    Ending.ENVIRONMENT: TrajectoryStatus.COMPLETE,
    Ending.TURN_LIMIT: TrajectoryStatus.TRUNCATED,
    Ending.TOKEN_LIMIT: TrajectoryStatus.TRUNCATED,
    Ending.FAILED: TrajectoryStatus.ERROR,
}


class CounterpartMaker(Protocol):
    """The strategy, as its conversations see it."""

    @property
    def config(self) -> ConversationSettings:
        """Its settings."""
        ...

    def counterpart(self, prompt: Prompt, seed: int) -> Counterpart:
        """The other side of one trajectory."""
        ...


class Conversations:
    """The trajectories of one job."""

    def __init__(
        self,
        strategy: CounterpartMaker,
        job: RolloutJob,
        engine: RolloutEngine,
        threads: CounterpartThreads,
        closers: CounterpartThreads,
    ) -> None:
        """Take no step yet; counterparts answer in `threads` and close in `closers`, which no hanging answer fills."""
        self._strategy = strategy
        self._config = strategy.config
        self._job = job
        self._engine = engine
        self._threads = threads
        self._closers = closers
        self._asked: dict[int, Conversation] = {}
        """Who waits for the engine, by ticket."""
        slots = [(p, k) for p in job.prompts for k in job.sample_indices]
        self._all = [Conversation(n, p, k) for n, (p, k) in enumerate(slots)]

    def run(self) -> list[Trajectory]:
        """Take every conversation to its end; trajectories in the order of prompts and samples."""
        try:
            for each in self._all:
                self._hand_over(each, self._open, self._opened, "opening the conversation")
            while self._threads.pending or self._asked:
                for answer in self._threads.done(wait=not self._asked):
                    self._take(answer)
                for ticket, generation in self._engine.advance() if self._asked else ():
                    self._heard(self._asked.pop(ticket), generation)
        finally:
            if self._asked:  # something raised: nobody will fetch these answers
                self._engine.abandon()
            self._close_all()
        return [self._trajectory(each) for each in self._all]

    def _hand_over(
        self,
        c: Conversation,
        work: Callable[[Conversation], object],
        then: Callable[[Conversation, Finished], None],
        what: str,
    ) -> None:
        """Have a thread do `work` on a conversation, and go on with `then`."""
        c.then = then
        self._threads.submit(c.key, partial(work, c), what)

    def _take(self, answer: Finished) -> None:
        report_progress(answers=1)
        c = self._all[answer.key]
        if answer.hung:
            c.give_up()
        then, c.then = c.then, None
        if then is not None:
            then(c, answer)

    # Opening

    def _open(self, c: Conversation) -> object:
        seed = derive_seed(self._job.seed_of(c.prompt, c.sample_index), "partner")
        counterpart = c.adopt(self._strategy.counterpart(c.prompt, seed))
        opening = counterpart.opening(c.prompt)
        return counterpart.framed(c.prompt), opening, counterpart.tools()

    def _opened(self, c: Conversation, answer: Finished) -> None:
        if answer.error is not None:
            self._fail(c, answer.error)
            return
        framed, opening, tools = cast("tuple[Any, Any, Any]", answer.value)
        try:
            with boundary(RolloutError, "the prompt cannot be rendered"):
                c.transcript = Transcript(
                    self._engine.chat,
                    (*framed, *opening),
                    (*c.prompt.tools, *tools),
                    rewritten_history=self._config.rewritten_history,
                )
                read = self._engine.chat.decode(c.transcript.prompt_token_ids)
                check_shown(read, c.prompt.messages, c.prompt.tools)
        except PawlError as error:
            self._fail(c, str(error))
            return
        c.opening = tuple(opening)
        limit = self._engine.max_context
        if limit is not None and len(c.transcript.token_ids) >= limit:
            size = len(c.transcript.token_ids)
            self._fail(c, f"the prompt has {size} tokens, the engine takes {limit} in all")
            return
        self._ask(c)

    # The policy's turn

    def _room(self, c: Conversation) -> int:
        """Tokens that the next turn may have."""
        assert c.transcript is not None
        used = len(c.transcript.token_ids)
        limits = [self._job.sampling.max_tokens]
        if self._engine.max_context is not None:
            limits.append(self._engine.max_context - used)
        if self._config.max_trajectory_tokens is not None:
            prompt = len(c.transcript.prompt_token_ids)
            limits.append(prompt + self._config.max_trajectory_tokens - used)
        return min(limits)

    def _ask(self, c: Conversation) -> None:
        assert c.transcript is not None
        sampling = self._job.sampling.model_copy(update={"max_tokens": self._room(c)})
        seed = self._job.seed_of(c.prompt, c.sample_index, len(c.policy_turns))
        request = GenerationRequest(tuple(c.transcript.token_ids), sampling, seed)
        self._asked[self._engine.submit(request)] = c

    def _heard(self, c: Conversation, said: Generation) -> None:
        assert c.transcript is not None
        counterpart = c.counterpart
        assert counterpart is not None
        if said.error is not None:
            self._fail(c, said.error)
            return
        shrunk = self._room(c) < self._job.sampling.max_tokens
        turn = len(c.policy_turns)
        c.turns.append(
            Turn(
                role="policy",
                token_ids=said.token_ids,
                text=said.text,
                logprobs=said.logprobs,
                stop_reason=said.stop_reason,
            )
        )
        read = said.text
        if self._config.partner_reads == "answer":
            chat, asked = self._engine.chat, c.transcript.token_ids
            read = spoken_text(said.text, said.token_ids, asked, chat)
        c.transcript.said(said.token_ids, said.text)
        cut = said.stop_reason is StopReason.LENGTH
        if cut and (shrunk or self._config.cut_turns == "end"):
            self._end(c, Ending.TOKEN_LIMIT)
            return
        self._hand_over(
            c,
            lambda _: _checked_reply(counterpart.reply(read, turn)),
            self._replied,
            f"the answer to turn {turn}",
        )

    # The counterpart's turn

    def _replied(self, c: Conversation, answer: Finished) -> None:
        if answer.error is not None:
            self._fail(c, answer.error)
            return
        assert c.transcript is not None
        reply = cast(Reply, answer.value)
        missing = [each.tool for each in reply.calls if each.status is ToolCallStatus.UNAVAILABLE]
        if missing:
            self._record(c, reply)
            why = " ".join(m.content for m in reply.messages)
            self._fail(c, f"tool {missing[0]!r} is unavailable: {why}")
            return
        if reply.ending is not None or not reply.messages:
            self._record(c, reply)
            ending = reply.ending or Ending.ANSWERED
            if ending is Ending.FAILED:
                self._fail(c, " ".join(m.content for m in reply.messages) or "it gave up")
                return
            cut = c.turns[c.policy_turns[-1]].stop_reason is StopReason.LENGTH
            self._end(c, Ending.TOKEN_LIMIT if cut and ending is Ending.ANSWERED else ending)
            return
        if len(c.policy_turns) >= self._config.max_turns:
            self._record(c, reply)
            self._end(c, Ending.TURN_LIMIT)
            return
        try:
            ids = c.transcript.observed(reply.messages)
        except RolloutError as error:
            self._record(c, reply)
            self._fail(c, str(error))
            return
        if self._room(c) < 1:
            self._record(c, reply)
            self._end(c, Ending.TOKEN_LIMIT)
            return
        self._record(c, reply, ids)
        self._ask(c)

    def _record(self, c: Conversation, reply: Reply, ids: tuple[int, ...] = ()) -> None:
        """Keep the observation; one that no turn follows has no tokens, for the policy never reads it."""
        if reply.messages or reply.calls:
            c.turns.append(
                Turn(
                    role="observation",
                    token_ids=ids,
                    text="\n".join(m.content for m in reply.messages),
                    stop_reason=StopReason.OBSERVATION,
                    calls=reply.calls,
                )
            )

    # The end

    def _end(self, c: Conversation, ending: Ending) -> None:
        c.ending = ending
        self._hand_over(c, _finish, self._finished, "asking for the outcome")

    def _finished(self, c: Conversation, answer: Finished) -> None:
        if answer.error is not None:
            self._fail(c, answer.error)
            return
        c.outcome = cast(Outcome, answer.value)

    def _fail(self, c: Conversation, error: str) -> None:
        c.ending = Ending.FAILED
        c.error = error
        self._closers.submit(c.key, c.close, "closing the counterpart")

    def _close_all(self) -> None:
        """Close every counterpart that is still open because the loop was left before its end; wait for all closing."""
        self._threads.forget_waiting()
        for each in self._all:
            each.then = None
            each.give_up()
            if not each.closed:
                self._closers.submit(each.key, each.close, "closing the counterpart")
        for threads in (self._closers, self._threads):
            while threads.pending:
                for answer in threads.done(wait=True):
                    if answer.hung:
                        logger.warning(
                            "%s (prompt %s)", answer.error, self._all[answer.key].prompt.id
                        )
            threads.release()

    def _trajectory(self, c: Conversation) -> Trajectory:
        try:
            with boundary(RolloutError, "the outcome is unusable"):
                return self._record_of(c)
        except PawlError as error:
            c.ending, c.error, c.outcome = Ending.FAILED, str(error), Outcome()
            return self._record_of(c)

    def _record_of(self, c: Conversation) -> Trajectory:
        assert c.ending is not None
        return Trajectory(
            id=self._job.trajectory_id(c.prompt, c.sample_index),
            prompt_id=c.prompt.id,
            sample_index=c.sample_index,
            policy_version=self._engine.serving.number,
            policy_digest=self._engine.serving.digest,
            prompt_token_ids=c.transcript.prompt_token_ids if c.transcript else (),
            turns=tuple(c.turns),
            status=_STATUS[c.ending],
            sampling=self._job.sampling,
            error=c.error,
            ending=c.ending,
            outcome=c.outcome.score,
            graded=_graded(c),
            opening=c.opening,
        )


def _finish(c: Conversation) -> Outcome:
    assert c.counterpart is not None
    try:
        outcome = c.counterpart.outcome()
    finally:
        c.close()
    if not isinstance(outcome, Outcome):
        raise RolloutError(f"outcome() must give an Outcome, not {type(outcome).__name__}")
    return outcome


def _checked_reply(reply: object) -> Reply:
    if not isinstance(reply, Reply):
        raise RolloutError(f"reply() must give a Reply, not {type(reply).__name__}")
    messages: Any = reply.messages
    strange = [type(m).__name__ for m in messages if not isinstance(m, Message)]
    if strange:
        raise RolloutError(f"an observation is made of Messages, not of {strange[0]}")
    return reply


def _graded(c: Conversation) -> Span | None:
    """The tokens of the turn that the counterpart wants graded; None for the last turn of an attempt that ended."""
    policy_turns = c.policy_turns
    number = c.outcome.graded_turn
    if number is None:
        return None
    if not 0 <= number < len(policy_turns):
        raise RolloutError(f"turn {number} is to be graded, the policy has {len(policy_turns)}")
    turn = policy_turns[number]
    whole = c.turns[turn].stop_reason is not StopReason.LENGTH
    if number == len(policy_turns) - 1 and not (c.ending is Ending.TOKEN_LIMIT and whole):
        return None
    return Span(turn=turn, start=0, end=len(c.turns[turn].token_ids))
