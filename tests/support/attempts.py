"""Attempts of one policy turn, for tests that care about its text."""

from __future__ import annotations

from typing import Any

from policies.base.records import Sampling, StopReason, Trajectory, TrajectoryStatus, Turn


def attempt(text: str, *, name: str = "t0", sample_index: int = 0, **changes: Any) -> Trajectory:
    """An attempt at prompt `p` in one token.

    Args:
        text: what the policy wrote.
        name: id of the trajectory.
        sample_index: which attempt at its prompt.
        changes: fields that differ.
    """
    turn = Turn(
        role="policy", token_ids=(7,), text=text, logprobs=(-1.0,), stop_reason=StopReason.STOP
    )
    fields: dict[str, Any] = {
        "id": name,
        "prompt_id": "p",
        "sample_index": sample_index,
        "policy_version": 0,
        "policy_digest": "d",
        "prompt_token_ids": (1,),
        "turns": (turn,),
        "status": TrajectoryStatus.COMPLETE,
        "sampling": Sampling(),
    }
    return Trajectory(**(fields | changes))
