"""The record of an attempt of one turn: what every strategy without a conversation writes."""

from __future__ import annotations

from typing import Any, NamedTuple

from policies.base.records import Ending, Prompt, StopReason, Trajectory, TrajectoryStatus, Turn
from workers.rollout.engine import Generation, RolloutEngine
from workers.rollout.strategy import RolloutJob


class Said(NamedTuple):
    """A turn with how the attempt ended by it."""

    turns: tuple[Turn, ...]
    status: TrajectoryStatus
    ending: Ending


FAILED = Said((), TrajectoryStatus.ERROR, Ending.FAILED)
"""An attempt of which there is no turn."""


def said_in_one_turn(answer: Generation, *, scored: bool = True) -> Said:
    """The engine's answer as the only turn.

    Args:
        answer: without an error.
        scored: its log-probs are those of the turn on the tokens before it; else the turn has none.
    """
    turn = Turn(
        role="policy",
        token_ids=answer.token_ids,
        text=answer.text,
        logprobs=answer.logprobs if scored else (),
        stop_reason=answer.stop_reason,
    )
    if answer.stop_reason is StopReason.LENGTH:
        return Said((turn,), TrajectoryStatus.TRUNCATED, Ending.TOKEN_LIMIT)
    return Said((turn,), TrajectoryStatus.COMPLETE, Ending.ANSWERED)


def attempt_at(
    job: RolloutJob, prompt: Prompt, index: int, engine: RolloutEngine, **rest: Any
) -> Trajectory:
    """An attempt beside the version that serves; `rest` are the fields that differ between strategies."""
    return Trajectory(
        id=job.trajectory_id(prompt, index),
        prompt_id=prompt.id,
        sample_index=index,
        policy_version=engine.serving.number,
        policy_digest=engine.serving.digest,
        sampling=job.sampling,
        **rest,
    )
