"""Conversations of a policy with a partner (tools, an environment, instructions), many at a time.

A strategy says who the partner is; `ConversationStrategy.run` does the rest: it keeps the exact token ids, asks the
engine for the next turn as soon as the partner has answered, and never lets one trajectory wait for another.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from pydantic import Field

from policies.component import Component
from policies.errors import ConfigurationError, RolloutError, explain
from policies.records import Message, Prompt, Trajectory
from workers.rollout.conversations import Conversations
from workers.rollout.engine import RolloutEngine
from workers.rollout.partner import Outcome, Partner, Reply
from workers.rollout.partner_threads import PartnerThreads
from workers.rollout.strategy import RolloutJob, RolloutStrategy
from workers.rollout.transcript import RewrittenHistory, RewrittenHistoryError, Transcript

__all__ = ["ConversationStrategy", "Outcome", "Partner", "Reply"]

_WHERE = "rollout.strategy"
_PROBES = ("pawl answers", "<think>\npawl thinks\n</think>\n\npawl answers")
"""Policy turns that are tried on a template; some templates take the thoughts out of earlier turns."""


class ConversationStrategy(RolloutStrategy):
    """Policy and partner in turn, up to a number of turns. Subclasses give `partner`."""

    class Config(Component.Config):
        """Settings of every strategy with several turns; `rollout.max_tokens` is the budget of one turn."""

        max_turns: int = Field(default=6, ge=1)
        """Most policy turns of a trajectory; one that would go on after them is truncated."""
        max_trajectory_tokens: int | None = Field(default=None, ge=1)
        """Most tokens of all policy turns and observations together, the prompt not counted; null leaves the limit to
        the model's context."""
        max_waiting: int = Field(default=16, ge=1)
        """Most partners (tools, environments) that work at a time, each in a thread."""
        partner_timeout_seconds: float = Field(default=60.0, gt=0)
        """Longest time of one answer of a partner, all its tool calls together; after it the trajectory is an error."""
        cut_turns: Literal["end", "answer"] = "end"
        """What follows a turn that ran out of `rollout.max_tokens`: `end` truncates the trajectory there, `answer` lets
        the partner answer what was written so far."""
        partner_reads: Literal["answer", "everything"] = "answer"
        """What partners (tools, environments) read of a policy turn: `answer`, what stands behind its thoughts, so that
        no call inside a thought is run and no move in it is made; `everything`, the thoughts too."""
        rewritten_history: RewrittenHistory = "refuse"
        """When the chat template shows earlier turns otherwise than they were sampled (some remove thoughts): `refuse`
        such a model or trajectory, or `keep` the sampled tokens, which the model then reads unlike its template."""

    config: Config

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        # Partners are closed in threads of their own: closing is what can free those that hang.
        self._threads, self._closers = (
            PartnerThreads(config.max_waiting, config.partner_timeout_seconds) for _ in range(2)
        )

    def partner(self, prompt: Prompt, seed: int) -> Partner:
        """The other side of one trajectory; `seed` is its own. Called in a thread."""
        raise NotImplementedError

    def sample_observation(self) -> tuple[Message, ...]:
        """Messages of the roles that partners answer with, for trying the chat template."""
        return (Message(role="user", content="pawl observes"),)

    def sample_tools(self) -> tuple[dict[str, Any], ...]:
        """Schemas that partners give to the chat template, for trying it."""
        return ()

    def prepare(self, engine: RolloutEngine) -> None:
        if self.config.max_turns > 1:
            for said in _PROBES:
                self._try_template(engine, said)

    def run(self, job: RolloutJob, engine: RolloutEngine) -> Sequence[Trajectory]:
        return Conversations(self, job, engine, self._threads, self._closers).run()

    def close(self) -> None:
        self._threads.release()
        self._closers.release()

    def _try_template(self, engine: RolloutEngine, said: str) -> None:
        """Two turns of a made-up conversation.

        Raises:
            ConfigurationError: the chat template cannot carry them.
        """
        observation = self.sample_observation()
        roles = sorted({m.role for m in observation})
        try:
            transcript = Transcript(
                engine.chat,
                (Message(role="user", content="pawl asks"),),
                self.sample_tools(),
                rewritten_history=self.config.rewritten_history,
            )
            for _ in range(2):
                transcript.said(engine.chat.encode(said), said)
                transcript.observed(observation)
        except RewrittenHistoryError as error:
            raise ConfigurationError(
                explain(
                    "the model's chat template does not go on from what was sampled",
                    value=str(error),
                    where="policy.model (its chat template)",
                    fix=f"set {_WHERE}.rewritten_history to 'keep', or give the model folder a template that keeps "
                    "earlier turns as they were",
                )
            ) from error
        except RolloutError as error:
            raise ConfigurationError(
                explain(
                    f"the model's chat template cannot show observations in the role {' or '.join(roles)}",
                    value=str(error),
                    where=f"policy.model (its chat template) and {_WHERE}",
                    fix="give observations in the role 'user' (calls.observation_role: user)",
                )
            ) from error
