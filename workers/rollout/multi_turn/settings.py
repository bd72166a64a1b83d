"""Settings of every strategy in which the policy has several turns."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from policies.base.bounds import MAX_ROUNDS, MAX_SECONDS, MAX_TOKENS, MAX_WORKERS
from policies.base.component import Component
from workers.rollout.chat.transcript import RewrittenHistory


class ConversationSettings(Component.Config):
    """Settings of every strategy with several turns; `rollout.max_tokens` is the budget of one turn."""

    max_turns: int = Field(default=6, ge=1, le=MAX_ROUNDS)
    """Most policy turns of a trajectory; one that would go on after them is truncated."""
    max_trajectory_tokens: int | None = Field(default=None, ge=1, le=MAX_TOKENS)
    """Most tokens of all policy turns and observations together, the prompt not counted; null leaves the limit to
    the model's context."""
    max_waiting: int = Field(default=16, ge=1, le=MAX_WORKERS)
    """Most counterparts (tools, environments) that work at a time, each in a thread."""
    partner_timeout_seconds: float = Field(default=60.0, gt=0, le=MAX_SECONDS)
    """Longest time of one answer of a counterpart, all tool calls together; after it the trajectory is an error."""
    cut_turns: Literal["end", "answer"] = "end"
    """What follows a turn that ran out of `rollout.max_tokens`: `end` truncates the trajectory there, `answer` lets
    the counterpart answer what was written so far."""
    partner_reads: Literal["answer", "everything"] = "answer"
    """What counterparts (tools, environments) read of a policy turn: `answer`, what stands behind its thoughts, so
    that no call inside a thought is run and no move in it is made; `everything`, the thoughts too."""
    rewritten_history: RewrittenHistory = "auto"
    """When the chat template shows earlier turns otherwise than they were sampled (most remove thoughts): `auto`
    and `keep` go on with the sampled tokens, which the model then reads unlike its template (`auto` tells why, in
    `pawl plan` and in the log); `refuse` refuses such a model or trajectory."""
