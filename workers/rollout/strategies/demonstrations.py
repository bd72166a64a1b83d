"""Trajectories from given solutions instead of sampled ones: what a supervised warm-up learns from.

`prompt.metadata["demonstration"]` is a list of `{"role", "content"}`: assistant messages are the policy's turns, what
stands between them are observations.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import ClassVar

from policies.base.component import Component
from policies.base.errors import RolloutError, explain
from policies.base.recorded_answers import problem_with
from policies.base.records import Json, Message, Prompt, Trajectory
from workers.rollout.chat.transcript import RewrittenHistory
from workers.rollout.engine import RolloutEngine
from workers.rollout.recorded_turns import recorded_trajectory, write
from workers.rollout.strategy import RolloutJob, RolloutStrategy

KEY = "demonstration"


class Demonstrations(RolloutStrategy):
    """Writes each demonstration in the model's own tokens and chat template; the engine samples nothing.

    The author of such trajectories is `log`, and their log-probs are not known: a loss with a reference has them scored
    by the trainer. All attempts at a prompt would be the same, so a round makes one, whatever
    `rollout.samples_per_prompt` and `rollout.mixture` say. A prompt without a readable demonstration gives error
    trajectories.
    """

    samples_policy: ClassVar[bool] = False
    repeats_itself: ClassVar[bool] = True

    class Config(Component.Config):
        """Settings of `demonstrations`."""

        rewritten_history: RewrittenHistory = "auto"
        """When the chat template shows earlier turns otherwise than they were demonstrated (most remove thoughts):
        `auto` and `keep` keep the turns as they were, `refuse` refuses the trajectory."""

    config: Config

    def run(self, job: RolloutJob, engine: RolloutEngine) -> Sequence[Trajectory]:
        found = []
        for prompt in job.prompts:
            written = write(
                prompt, partial(_demonstrated, prompt), engine, self.config.rewritten_history
            )
            for index in job.sample_indices:
                found.append(recorded_trajectory(job, prompt, index, written, engine))
        return found


def _demonstrated(prompt: Prompt) -> list[Message]:
    given: Json = prompt.metadata.get(KEY)
    if given is None:
        raise _refused(prompt, "there is none")
    if not isinstance(given, list) or not given:
        raise _refused(prompt, "it is not a list of messages")
    try:
        messages = [Message.model_validate(item) for item in given]
    except ValueError as error:
        raise _refused(prompt, "it is not a list of {role, content} with texts") from error
    if problem := problem_with(messages):
        raise _refused(prompt, problem)
    return messages


def _refused(prompt: Prompt, what: str) -> RolloutError:
    return RolloutError(
        explain(
            f"the demonstration of prompt {prompt.id!r} cannot be used: {what}",
            value=str(prompt.metadata.get(KEY))[:120],
            where=f"metadata.{KEY} of the prompt",
            fix="give a list of {role, content} that begins and ends with role assistant, with the tool's or user's "
            "messages between; tool_arithmetic makes it with demonstrations: true",
        )
    )
