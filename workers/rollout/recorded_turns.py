"""Answers that were recorded elsewhere, in the tokens that the sampler would have given: template, terminators, masks.

A policy turn is the content of an assistant message, encoded without control tokens, and the terminator that the
template writes after it: what a perfect policy would have sampled. Nobody knows its log-probs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from policies.base.errors import PawlError, RolloutError, boundary, explain
from policies.base.records import (
    Author,
    Ending,
    Message,
    Prompt,
    StopReason,
    Trajectory,
    TrajectoryStatus,
    Turn,
)
from workers.rollout.attempts import attempt_at
from workers.rollout.chat.transcript import RewrittenHistory, Transcript
from workers.rollout.engine import RolloutEngine
from workers.rollout.strategy import RolloutJob

Written = tuple[tuple[int, ...], tuple[Turn, ...], str | None]
"""Tokens of the prompt, the turns, and why there are none."""
Read = Callable[[], Sequence[Message]]
"""Finds the recorded messages, or raises RolloutError."""


def write(
    prompt: Prompt, read: Read, engine: RolloutEngine, rewritten_history: RewrittenHistory
) -> Written:
    """Write one recorded answer in tokens; what cannot be written is an error of this prompt."""
    prompt_token_ids: tuple[int, ...] = ()
    try:
        with boundary(RolloutError, "the recorded answer cannot be written in tokens"):
            prompt_token_ids = engine.render(prompt.messages, prompt.tools)
            turns = _turns(prompt, read(), engine, rewritten_history)
            _check_size(len(prompt_token_ids), turns, engine)
    except PawlError as failure:
        return prompt_token_ids, (), str(failure)
    return prompt_token_ids, turns, None


def recorded_trajectory(
    job: RolloutJob, prompt: Prompt, index: int, written: Written, engine: RolloutEngine
) -> Trajectory:
    """The record of one recorded answer, beside the version that serves."""
    prompt_token_ids, turns, error = written
    return attempt_at(
        job,
        prompt,
        index,
        engine,
        prompt_token_ids=prompt_token_ids,
        turns=turns,
        status=TrajectoryStatus.ERROR if error else TrajectoryStatus.COMPLETE,
        error=error,
        ending=Ending.FAILED if error else Ending.ANSWERED,
        author=Author.LOG,
    )


def _turns(
    prompt: Prompt,
    messages: Sequence[Message],
    engine: RolloutEngine,
    rewritten_history: RewrittenHistory,
) -> tuple[Turn, ...]:
    chat = engine.chat
    transcript = Transcript(
        chat, prompt.messages, prompt.tools, rewritten_history=rewritten_history
    )
    terminator = _terminator(prompt, engine)
    turns: list[Turn] = []
    for said, observation in _exchanges(messages):
        token_ids = (*chat.encode(said, special=False), terminator)
        turns.append(
            Turn(role="policy", token_ids=token_ids, text=said, stop_reason=StopReason.STOP)
        )
        transcript.said(token_ids, said)
        if observation:
            turns.append(
                Turn(
                    role="observation",
                    token_ids=transcript.observed(observation),
                    text="\n".join(message.content for message in observation),
                    stop_reason=StopReason.OBSERVATION,
                )
            )
    return tuple(turns)


def _exchanges(messages: Sequence[Message]) -> list[tuple[str, tuple[Message, ...]]]:
    """Each assistant message with the messages that follow it up to the next one."""
    found: list[tuple[str, list[Message]]] = []
    for message in messages:
        if message.role == "assistant":
            found.append((message.content, []))
        else:
            found[-1][1].append(message)
    return [(said, tuple(observation)) for said, observation in found]


def _terminator(prompt: Prompt, engine: RolloutEngine) -> int:
    """The token that the template writes after an assistant turn."""
    chat = engine.chat
    probe = Transcript(chat, prompt.messages, prompt.tools, rewritten_history="keep")
    probe.said(chat.encode("pawl answers"), "pawl answers")
    written = probe.between((Message(role="user", content="pawl asks"),))
    for token_id in written:
        if token_id in chat.terminators:
            return token_id
    if len(chat.terminators) == 1:
        return next(iter(chat.terminators))
    raise RolloutError(
        explain(
            "the chat template ends an assistant turn with none of the model's terminators",
            value=sorted(chat.terminators),
            where="policy.model (its chat template and generation config)",
            fix="use a template that writes the end-of-turn token, or sample with another strategy",
        )
    )


def _check_size(size: int, turns: tuple[Turn, ...], engine: RolloutEngine) -> None:
    size += sum(len(turn.token_ids) for turn in turns)
    limit = engine.max_context
    if limit is not None and size > limit:
        raise RolloutError(
            f"prompt and recorded answer have {size} tokens, the engine takes {limit}"
        )
